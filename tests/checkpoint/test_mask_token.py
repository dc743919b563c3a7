"""K4: what the input says of its mask token and its visibility wins over a default, and is told with its origin."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import TINY
from test_train import run, settings
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from converters.from_hf import convert
from qwen3llada_jax.text import mask_token, tokens
from train.checkpoint.base_model import find_base_model, settled
from train.config.parse import as_yaml, read_config
from train.monitor import samples
from train.objective import objective_of
from train.objectives.example import DeviceBatch


def changed(source: Path, target: Path, **keys) -> Path:
    """The folder, its config.json naming other things."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | keys))
    return target


def with_mask_text(source: Path, target: Path, *texts: str, first: int = 1050, as_mask: bool = False) -> Path:
    """The folder, its tokenizer holding tokens of these texts, from id 1050 on."""
    shutil.copytree(source, target)
    file = target / "tokenizer.json"
    written = json.loads(file.read_text())
    for i, text in enumerate(texts):
        written["added_tokens"].append(
            {**written["added_tokens"][-1], "id": first + i, "content": text, "special": True}
        )
    file.write_text(json.dumps(written))
    if as_mask:
        file = target / "tokenizer_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"mask_token": texts[0]}))
    return target


def import_(source, tmp_path, asked="auto", add=False):
    return convert(str(source), tmp_path / "ours", dtype=None, mask_token_id=asked, add_mask_token=add, overwrite=True)


def without_free_row(source: Path, target: Path, *texts: str) -> Path:
    """The folder, its tokenizer holding tokens of these texts, and as many more as the embedding has rows."""
    texts = [*texts, *(f"<extra {i}>" for i in range(1088 - 1050 - len(texts)))]
    return with_mask_text(source, target, *texts)


def configured(start, **changes):
    return read_config(None, settings(start, Path("unused"), **{k.replace("__", "."): v for k, v in changes.items()}))


NO_FLAG = {"model.mask_token_id": "null"}


# ---- the mask token of an import -----------------------------------------------------------------------------


def test_k4_the_models_config_wins_over_the_tokenizer_and_free_rows(start, tmp_path, capsys):
    folder = changed(with_mask_text(start, tmp_path / "own", "<|mask|>"), tmp_path / "hf", mask_token_id=1055)
    assert import_(folder, tmp_path).mask_token_id == 1055
    assert "mask token: 1055 (a row that no token uses; named by the model's config.json)" in capsys.readouterr().out
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["mask_token_id"] == 1055


def test_k4_the_flag_wins_over_all_and_says_what_it_changes(start, tmp_path, capsys):
    folder = changed(start, tmp_path / "hf", mask_token_id=1055)
    assert import_(folder, tmp_path, "1061").mask_token_id == 1061
    out = capsys.readouterr()
    assert "mask token: 1061 (a row that no token uses; asked for by --mask-token-id)" in out.out
    assert "notice: config.json names mask token 1055" in out.err


@pytest.mark.parametrize("text", ["<|mask|>", "<|MASK|>", "<|mdm_mask|>", "[MASK]", "|<MASK>|"])
def test_k4_auto_takes_the_tokenizers_own_mask_token(start, tmp_path, capsys, text):
    """It took the untrained row behind it (here 1051). LLaDA's own token is of that kind, whatever its id."""
    assert import_(with_mask_text(start, tmp_path / "hf", text), tmp_path).mask_token_id == 1050
    out = capsys.readouterr()
    assert f"mask token: 1050 ({text!r}; the tokenizer's own)" in out.out
    assert "real text" not in out.err


def test_k4_a_mask_token_that_the_tokenizer_declares(start, tmp_path):
    folder = with_mask_text(start, tmp_path / "hf", "<unk-yet>", as_mask=True)
    assert import_(folder, tmp_path).mask_token_id == 1050
    both = with_mask_text(start, tmp_path / "two", "<|mask|>", "[MASK]")
    with pytest.raises(q.InputError, match=r"several tokens .* <\|mask\|> \(1050\), \[MASK\] \(1051\); name one"):
        import_(both, tmp_path)
    assert import_(both, tmp_path, "1051").mask_token_id == 1051


def test_k4_generation_config_may_name_it_too(start, tmp_path, capsys):
    """A relative: Dream's models say it there."""
    folder = changed(start, tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"mask_token_id": 1056}')
    assert import_(folder, tmp_path).mask_token_id == 1056
    assert "named by the model's generation_config.json" in capsys.readouterr().out
    (folder / "generation_config.json").write_text('{"mask_token_id": "x"}')
    with pytest.raises(q.InputError, match=r"generation_config.json: mask_token_id 'x' is neither a number"):
        import_(folder, tmp_path)


def test_k4_where_nothing_names_one_auto_takes_a_free_row_and_no_flag_means_auto(start, tmp_path, capsys):
    assert import_(start, tmp_path).mask_token_id == 1050
    assert "mask token: 1050 (a row that no token uses; the first that is free)" in capsys.readouterr().out
    with pytest.raises(q.InputError, match="126336 is outside the embedding table"):
        import_(start, tmp_path, "126336")
    bare = save_torch(torch_model(1), tmp_path / "bare")
    with pytest.raises(q.InputError, match="no free row is known; name the mask token with --mask-token-id N"):
        import_(bare, tmp_path)


def test_where_no_row_is_free_auto_takes_a_reserved_special_token(start, tmp_path, capsys):
    """Llama's and SmolLM2's tokenizers have a token for every row."""
    for i, texts in enumerate(
        (["<x>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"], ["<x>", "<gh_stars>"])
    ):
        assert import_(without_free_row(start, tmp_path / f"hf{i}", *texts), tmp_path).mask_token_id == 1051
        out = capsys.readouterr()
        assert f"mask token: 1051 ({texts[1]!r}; a special token that texts do not use; no row is free)" in out.out
        assert "real text" not in out.err
    padded = without_free_row(
        start, tmp_path / "padded", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"
    )
    settings = json.loads((padded / "tokenizer_config.json").read_text()) | {
        "pad_token": "<|reserved_special_token_0|>"
    }
    (padded / "tokenizer_config.json").write_text(json.dumps(settings))
    assert import_(padded, tmp_path).mask_token_id == 1051
    named = changed(padded, tmp_path / "named", mask_token_id=1060)  # who is named still wins
    assert import_(named, tmp_path).mask_token_id == 1060
    with pytest.raises(q.InputError, match=r"none is reserved.* with --mask-token-id N, or .*--add-mask-token"):
        import_(without_free_row(start, tmp_path / "full"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_a_row_more_for_the_mask_is_the_mean_of_all(start, tmp_path, capsys, tied):
    shape = dict(vocab_size=1088, hidden_size=32, num_hidden_layers=1, intermediate_size=48, tie_word_embeddings=tied)
    source = without_free_row(start, tmp_path / "hf")
    save_torch(torch_model(3, **shape), source)
    config = import_(source, tmp_path, add=True)
    assert (config.vocab_size, config.live_vocab_size, config.mask_token_id) == (1089, 1089, 1088)
    assert "mask token: 1088 ('<|mask|>'; added: the mean of all rows)" in capsys.readouterr().out
    ours, tokenizer = q.load(tmp_path / "ours"), tokens.load_tokenizer(tmp_path / "ours")
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mask|>", 1088)
    assert tokenizer("a<|mask|>b", add_special_tokens=False).input_ids[1] == 1088
    logits, theirs = np.asarray(ours([[5, 6, 7]])), np.asarray(q.load(source)([[5, 6, 7]]))
    np.testing.assert_allclose(logits[..., :1088], theirs, atol=1e-6)
    np.testing.assert_allclose(logits[..., 1088], theirs.mean(-1), atol=1e-5)
    table = np.asarray(ours.embed_tokens[...])
    np.testing.assert_allclose(table[1088], table[:1088].mean(0), atol=1e-7)
    assert q.load(tmp_path / "ours").config.mask_token_id == 1088
    for folder, asked, part in (
        (start, "auto", "row 1050 of the embedding"),
        (source, "7", "--add-mask-token and --mask-token-id 7 both say"),
        (tmp_path / "ours", "auto", "has a mask token, 1088"),
    ):
        with pytest.raises(q.InputError, match=part):
            import_(folder, tmp_path / "more", asked, add=True)


def test_k4_a_piece_of_text_and_an_eos_as_mask_token(start, tmp_path, capsys):
    import_(start, tmp_path, "300")
    assert "a token of real text" in capsys.readouterr().err
    for eos in (1024, 1026):
        with pytest.raises(q.InputError, match=f"--mask-token-id {eos} is an EOS"):
            import_(start, tmp_path, str(eos))


def test_k4_what_generation_config_says_ends_a_text_is_no_mask_token(start, tmp_path, capsys):
    """One rule of what ends a text: `load`, the import, training and its samples all ask it."""
    folder = changed(start, tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1024, 5]}')
    assert 5 in q.load(folder).config.eos_token_ids
    with pytest.raises(q.InputError, match="--mask-token-id 5 is an EOS"):
        import_(folder, tmp_path, "5")
    with pytest.raises(q.InputError, match=r"model.mask_token_id 5 is an EOS"):
        find_base_model(configured(folder, model__mask_token_id=5))
    bare = save_torch(torch_model(1), tmp_path / "bare")  # without a tokenizer, too
    (bare / "generation_config.json").write_text('{"eos_token_id": 5}')
    with pytest.raises(q.InputError, match="--mask-token-id 5 is an EOS"):
        import_(bare, tmp_path, "5")


def test_k18_samples_of_training_end_where_the_models_texts_end(start, tmp_path, monkeypatch):
    folder, said = changed(start, tmp_path / "run"), []

    def write(model, folder, asked, settings, **_):
        said.append(settings.eos_token_ids)
        return iter(())

    (folder / "generation_config.json").write_text('{"eos_token_id": [1024, 5]}')
    monkeypatch.setattr(samples.completions, "write", write)
    config = read_config(None, settings(start, folder, **{"evaluation.prompts": "a"}))
    model = SimpleNamespace(config=q.ModelConfig.from_hf(json.loads((folder / "config.json").read_text())))
    watch, mesh = SimpleNamespace(sample=said.append), SimpleNamespace(shape={"data": 1, "fsdp": 1})
    samples.write_samples(model, tokens.load_tokenizer(folder), config, 1, watch, mesh)
    assert set(said[0]) == set(q.load(folder).config.eos_token_ids) > {5, 1024}


# ---- the mask token of a later stage -------------------------------------------------------------------------


def test_k4_a_later_stage_keeps_the_models_mask_token(start, tmp_path):
    folder = changed(start, tmp_path / "ours", mask_token_id=1055)
    for asked in ("auto", "null", "1055"):
        found = find_base_model(configured(folder, **{"model.mask_token_id": asked}))
        assert found.config.mask_token_id == found.mask_token.id == 1055
    assert "asked for by model.mask_token_id" in str(found.mask_token)
    assert "config.json" in str(find_base_model(configured(folder)).mask_token)


def test_k4_a_change_between_stages_needs_a_flag(start, tmp_path):
    folder = changed(start, tmp_path / "ours", mask_token_id=1055)
    with pytest.raises(
        q.InputError, match=r"1060 is not the mask token 1055 that .* set model.change_mask_token: true"
    ):
        find_base_model(configured(folder, **{"model.mask_token_id": 1060}))
    told = {"model.mask_token_id": 1060, "model.change_mask_token": True}
    assert find_base_model(configured(folder, **told)).config.mask_token_id == 1060
    assert (
        find_base_model(configured(changed(folder, tmp_path / "run", mask_token_id=1060), **told)).config.mask_token_id
        == 1060
    )
    for asked in ("auto", "null"):
        with pytest.raises(q.InputError, match=r"change_mask_token has no effect without model\.mask_token_id"):
            find_base_model(configured(folder, **told | {"model.mask_token_id": asked}))


def test_k4_training_asks_the_tokenizer_too(start, tmp_path):
    own = with_mask_text(start, tmp_path / "own", "<|mask|>")
    for asked in ("auto", "null"):
        found = find_base_model(configured(own, **{"model.mask_token_id": asked}))
        assert found.config.mask_token_id == 1050
        assert str(found.mask_token) == "1050 ('<|mask|>'; the tokenizer's own)"
    with pytest.raises(q.InputError, match="no mask token: the model folder names none"):
        find_base_model(configured(start, **NO_FLAG))


# ---- visibility ----------------------------------------------------------------------------------------------


def sees(start, **changes):
    """(visibility, block length, do prompts see answers) of a run, its config, and what is said of it."""
    config = configured(start, **changes)
    found = find_base_model(config)
    config = settled(config, found.blocks)
    c = found.config
    return (c.visibility, c.block_length, c.prompt_sees_answer), config, found.visibility


def test_k4_a_later_stage_keeps_the_models_visibility(start, tmp_path):
    """`block_attention` off, the default, made a block_causal model `full` without a word."""
    causal = changed(start, tmp_path / "causal", visibility="block_causal", block_length=8)
    bias = changed(start, tmp_path / "bias", visibility="block_bias", block_length=4, prompt_sees_answer=True)
    blocks = "training.block_attention."
    for folder, changes, expected, said in (
        (start, {}, ("full", None, False), "full (the model's own)"),
        (causal, {}, ("block_causal", 8, False), "block_causal in blocks of 8 (the model's own)"),
        (bias, {}, ("block_bias", 4, True), "block_bias in blocks of 4, prompts see answers (the model's own)"),
        (causal, {"enabled": True}, ("block_causal", 8, False), "(the model's own)"),
        (bias, {"enabled": True}, ("block_bias", 4, True), "(the model's own)"),
        (causal, {"block_length": 16}, ("block_causal", 16, False), "the model's own was block_causal in blocks of 8"),
        (causal, {"enabled": False}, ("full", 8, False), "enabled is false; the model's own was block_causal in block"),
        (causal, {"enabled": True, "visibility": "block_bias"}, ("block_bias", 8, False), "own was block_causal"),
        (bias, {"enabled": True, "visibility": "block_causal"}, ("block_causal", 4, False), "own was block_bias"),
        (start, {"enabled": True}, ("block_bias", 32, False), "block_bias in blocks of 32 (training.block_attention"),
        (start, {"enabled": True, "block_length": 8}, ("block_bias", 8, False), "the model's own was full"),
    ):
        found, config, text = sees(folder, **{blocks + k: v for k, v in changes.items()})
        assert found == expected, changes
        assert said in text, changes
        assert config.training.block_attention.enabled == (expected[0] != "full")
        (tmp_path / "again.yaml").write_text(as_yaml(config))
        assert read_config(tmp_path / "again.yaml") == config  # what a run writes down can be run again
    for folder, changes, part in (
        (start, {"block_length": 8}, "block_length has no effect on a model of visibility full"),
        (causal, {"enabled": True, "prompt_sees_answer": True}, "prompt_sees_answer has no effect with visibility"),
        (causal, {"prompt_sees_answer": True}, "prompt_sees_answer has no effect unless"),
    ):
        with pytest.raises(q.InputError, match=part):
            sees(folder, **{blocks + k: v for k, v in changes.items()})


def test_k4_the_step_hides_what_the_model_was_trained_without(start, tmp_path):
    causal = changed(start, tmp_path / "causal", visibility="block_causal", block_length=8)
    rows = jnp.zeros(1, jnp.int32)
    batch = DeviceBatch(tokens_of(8), rows, rows + 8, rows)
    random_length = {"training.noise.random_length_prob": 0}
    for folder, changes, expected in (
        (causal, {}, ("block_causal", 8)),
        (causal, {"training.block_attention.enabled": False}, ("full", None)),
        (start, {}, ("full", None)),
    ):
        _, config, _ = sees(folder, **changes, **random_length)
        mask = objective_of(config, 1050, 1050)(batch, jax.random.key(0), jnp.int32(0)).mask
        assert (mask.kind, mask.block_length) == expected


def tokens_of(length: int):
    return np.zeros((1, length), np.int32)


@pytest.mark.slow
def test_k4_a_run_hands_on_what_its_model_was_trained_with(start, tmp_path, capsys):
    causal = changed(start, tmp_path / "causal", visibility="block_causal", block_length=8, mask_token_id=1055)
    quiet = {"evaluation.do_eval_loss": False, "training.max_steps": 1, "training.save_steps": 1}
    run(causal, tmp_path / "run", **quiet)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["visibility"], config["block_length"], config["mask_token_id"]) == ("block_causal", 8, 1055)
    said = capsys.readouterr().out
    assert "mask token 1055 (a row that no token uses; named by the model's config.json)" in said
    assert "visibility block_causal in blocks of 8 (the model's own)" in said


def test_the_choice_is_text_for_any_program(tokenizer):
    config = q.ModelConfig.from_hf(json.loads((TINY / "config.json").read_text()))
    found = mask_token.choose("auto", TINY, config, tokenizer, "--mask")
    assert found == (1050, "the first that is free", None, False)
    assert mask_token.choose(None, TINY, config, tokenizer, "--mask") is None
    assert tokens.stop_ids(config, tokenizer) == (1024, 1026)
