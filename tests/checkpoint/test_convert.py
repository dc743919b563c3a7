"""Import, export and comparison of checkpoints: every byte, both ways, and what bad input gets."""

import json
import resource
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from conftest import TINY, assert_one_line_error, refuses, run_program
from safetensors.torch import load_file, save_file
from torch_twins import logits_of, save_torch, torch_model
from transformers import Qwen3ForCausalLM

import qwen3llada_jax as q
from converters.analyze import analyze
from converters.from_hf import convert
from converters.to_hf import export
from qwen3llada_jax.checkpoint import hf_import, model_folder
from qwen3llada_jax.families.records import QWEN3
from qwen3llada_jax.model.config import ModelConfig, read_config_json


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


def assert_same_bytes(a: Path, b: Path) -> None:
    ours, theirs = tensors_of(a), tensors_of(b)
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name].view(torch.uint8), tensor.view(torch.uint8)), name


def import_(src: Path, dst: Path, **options) -> ModelConfig:
    return convert(str(src), dst, **{"dtype": None, "mask_token_id": "7", **options})


def test_table_is_one_to_one():
    assert len(set(QWEN3.names.values())) == len(QWEN3.names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("sharded", [True, False])
def test_round_trip_is_byte_identical(tmp_path, dtype, tied, sharded):
    reference = torch_model(1, dtype, tie_word_embeddings=tied, attention_bias=sharded)
    src = save_torch(reference, tmp_path / "hf", **({"max_shard_size": "40KB"} if sharded else {}))
    assert len(list(src.glob("*.safetensors"))) > 1 or not sharded
    import_(src, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", max_shard_size="40KB" if sharded else "5GB")
    assert_same_bytes(tmp_path / "back", src)
    tokens = np.arange(14).reshape(2, 7)
    logits = [
        logits_of(Qwen3ForCausalLM.from_pretrained(folder, attn_implementation="eager", is_causal=False).eval(), tokens)
        for folder in (src, tmp_path / "back")
    ]
    np.testing.assert_array_equal(*logits)


def rewrite(src: Path, dst: Path, change) -> Path:
    """A copy of a single-file folder with its tensors changed."""
    shutil.copytree(src, dst)
    tensors = tensors_of(src)
    change(tensors)
    save_file(tensors, dst / "model.safetensors", metadata={"format": "pt"})
    return dst


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> Path:
    return save_torch(torch_model(2), tmp_path_factory.mktemp("hf"))


def test_mixed_dtypes_and_a_stored_tied_head_come_back_as_they_were(hf, tmp_path):
    def mix(tensors):
        for i, (name, tensor) in enumerate(sorted(tensors.items())):
            tensors[name] = tensor.to([torch.float32, torch.bfloat16, torch.float16][i % 3])
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    src = rewrite(hf, tmp_path / "mixed", mix)
    import_(src, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back")
    assert_same_bytes(tmp_path / "back", src)


@pytest.mark.slow
def test_load_opens_both_kinds_of_folder_alike(hf, tmp_path):
    import_(hf, tmp_path / "ours")
    tokens = np.arange(10).reshape(2, 5)
    np.testing.assert_array_equal(q.load(hf)(tokens), q.load(tmp_path / "ours")(tokens))
    assert q.load(tmp_path / "ours", "bfloat16").embed_tokens.dtype == "bfloat16"
    assert q.load(tmp_path / "ours").config.mask_token_id == 7


@pytest.mark.slow
def test_load_onto_a_mesh(hf, tmp_path):
    import_(hf, tmp_path / "ours")
    mesh = q.make_mesh(data=2, fsdp=2, tensor=2)
    tokens = np.arange(10).reshape(2, 5) + 200
    with pytest.raises(q.InputError, match="vocab 211 by 2"):
        q.load(hf, mesh=mesh)
    even = save_torch(torch_model(2, vocab_size=212), tmp_path / "even")
    alone = q.load(even)(tokens)
    import_(even, tmp_path / "ours-even")
    for folder in (even, tmp_path / "ours-even"):
        model = q.load(folder, mesh=mesh)
        assert model.embed_tokens[...].sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")
        with jax.set_mesh(mesh):
            spread = jax.jit(lambda m, t: m(t))(model, tokens)
        np.testing.assert_allclose(spread, alone, atol=1e-5)


def test_tied_head_is_one_array_on_disk_and_in_memory(hf, tmp_path):
    """Defect of the PyTorch system: the head was a copy, so training untied it."""
    import_(hf, tmp_path / "ours")
    model = q.load(tmp_path / "ours")
    assert not hasattr(model, "lm_head")
    assert model.head is model.embed_tokens[...]
    assert not list((tmp_path / "ours" / "params").rglob("*lm_head*"))


def test_tensors_are_read_without_a_second_copy(hf):
    config = ModelConfig.from_hf(read_config_json(hf))
    stack = next(s for s in hf_import.plan(hf, config) if s.name == "layers.gate_proj")
    array = hf_import._aligned_empty(stack.shape, stack.dtype)
    array[...] = 0
    on_device = hf_import._to_device(array, None)
    assert on_device.unsafe_buffer_pointer() == array.ctypes.data


# ---- the mask token ------------------------------------------------------------------------------------------


def test_mask_token_auto_is_the_first_row_without_a_token(tmp_path, capsys):
    config = import_(TINY, tmp_path / "ours", mask_token_id="auto")
    assert config.mask_token_id == 1050 == config.live_vocab_size
    assert "a row that no token uses" in capsys.readouterr().out


def test_mask_token_that_is_real_text_gets_a_notice(tmp_path, capsys):
    import_(TINY, tmp_path / "ours", mask_token_id="300")
    assert "a token of real text" in capsys.readouterr().err


def test_what_its_publishers_sample_by_and_the_sampler_has_not_is_named(hf, tmp_path, capsys):
    folder = shutil.copytree(hf, tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"min_p": 0.05, "temperature": 0.6, "num_beams": 1}')
    import_(folder, tmp_path / "ours")
    assert "asks for what the sampler has not: min_p 0.05; texts" in capsys.readouterr().err


def test_mask_token_travels_to_the_export_and_back(tmp_path):
    import_(TINY, tmp_path / "ours", mask_token_id="auto")
    export(tmp_path / "ours", tmp_path / "back")
    assert ModelConfig.from_hf(read_config_json(tmp_path / "back")).mask_token_id == 1050
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()


# ---- analyze -------------------------------------------------------------------------------------------------


def test_analyze_finds_nothing_then_everything(hf, tmp_path, capsys):
    import_(hf, tmp_path / "ours")
    assert analyze(hf, tmp_path / "ours") == 0

    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.extra.weight"] = torch.zeros(3)
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(5, 5)
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] += 1

    capsys.readouterr()
    assert analyze(rewrite(hf, tmp_path / "bad", spoil), tmp_path / "ours") == 1
    out = capsys.readouterr().out
    assert "model.norm.weight: missing" in out
    assert "model.extra.weight: unexpected" in out
    assert "model.layers.1.mlp.up_proj.weight: shape differs" in out
    assert "model.layers.2.mlp.up_proj.weight: values differ by up to 1" in out
    assert "4 problem(s)" in out


@pytest.mark.slow
def test_analyze_exit_codes(hf, tmp_path):
    run_program("converters.analyze", "--src", hf, check=0)
    bad = rewrite(hf, tmp_path / "bad", lambda t: t.pop("model.norm.weight"))
    run_program("converters.analyze", "--src", bad, check=1)


# ---- bad input -----------------------------------------------------------------------------------------------


def refuses_to_import(src: Path | str, tmp_path: Path, *parts: str, **options) -> None:
    """The import raises one clear error and leaves nothing behind."""
    refuses(lambda: import_(src, tmp_path / "dst", **options), *parts)
    assert not any(p.name.startswith((".dst", "dst")) for p in tmp_path.iterdir())


def change_config(hf: Path, folder: Path, **changes) -> Path:
    shutil.copytree(hf, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return folder


def test_missing_folder(tmp_path):
    refuses_to_import(tmp_path / "nowhere", tmp_path, "nowhere: no such folder")


def test_unknown_hub_model(tmp_path):
    refuses_to_import("nobody/no-such-model", tmp_path, "the hub did not give")


def test_no_config_and_broken_config(hf, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses_to_import(tmp_path / "empty", tmp_path, "no config.json")
    broken = change_config(hf, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": ')
    refuses_to_import(broken, tmp_path, "not valid JSON")


def test_no_safetensors(hf, tmp_path):
    folder = change_config(hf, tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuses_to_import(folder, tmp_path, "no .safetensors", "PyTorch .bin")


def test_index_names_an_absent_shard(tmp_path):
    folder = save_torch(torch_model(2), tmp_path / "hf", max_shard_size="40KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    refuses_to_import(folder, tmp_path, gone.name, "not there")


def test_truncated_and_corrupt_safetensors(hf, tmp_path):
    whole = (hf / "model.safetensors").read_bytes()
    spoiled = {
        "truncated": whole[:-100],
        "header cut": whole[:50],
        "empty": b"",
        "huge header": struct.pack("<Q", 1 << 60) + whole[8:],
        "header no JSON": whole[:8] + b"x" + whole[9:],
    }
    for name, data in spoiled.items():
        folder = change_config(hf, tmp_path / name)
        (folder / "model.safetensors").write_bytes(data)
        refuses_to_import(folder, tmp_path, "model.safetensors: truncated or corrupt")


def test_all_wrong_tensors_are_listed_at_once(hf, tmp_path):
    def spoil(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["surplus"] = torch.zeros(2)
        tensors["model.layers.1.self_attn.q_proj.weight"] = torch.zeros(3, 3)

    refuses_to_import(
        rewrite(hf, tmp_path / "bad", spoil),
        tmp_path,
        "missing model.norm.weight",
        "missing model.layers.0.mlp.up_proj.weight",
        "unexpected surplus",
        "model.layers.1.self_attn.q_proj.weight has shape [3, 3] where the config says [64, 48]",
    )


def test_integer_tensors_are_refused(hf, tmp_path):
    bad = rewrite(hf, tmp_path / "bad", lambda t: t.update({"model.norm.weight": torch.zeros(48, dtype=torch.int8)}))
    refuses_to_import(bad, tmp_path, "model.norm.weight (I8)", "unquantized")


def test_untied_without_head_and_tied_with_another_head(hf, tmp_path):
    refuses_to_import(change_config(hf, tmp_path / "a", tie_word_embeddings=False), tmp_path, "missing lm_head.weight")
    other = rewrite(hf, tmp_path / "b", lambda t: t.update({"lm_head.weight": torch.zeros(211, 48)}))
    refuses_to_import(other, tmp_path, "tie_word_embeddings is true but lm_head.weight is not the embedding")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (
            {"model_type": "llama"},
            "model_type is llama, and architectures names Qwen3ForCausalLM, not LlamaForCausalLM",
        ),
        ({"model_type": "gpt2"}, "model_type is 'gpt2'; models of these can be read: qwen3, qwen2, llama"),
        ({"model_type": "qwen3_moe"}, "mixture of experts"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"layer_types": ["sliding_attention"] * 3}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "rope kind 'longrope'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "needs factor"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "x": 1}},
            "unknown parameter 'x'",
        ),
        ({"rope_parameters": "absent"}, "rope_theta"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({"hidden_size": "absent"}, "lacks hidden_size"),
        ({"rope_parameters": [1]}, "wrong kind"),
        ({"mask_token_id": "auto"}, "mask_token_id must be a whole number, not 'auto'"),
        ({"num_attention_heads": 3}, "not a multiple"),
    ],
)
def test_configs_we_cannot_honor(hf, tmp_path, changes, part):
    refuses_to_import(change_config(hf, tmp_path / "hf", **changes), tmp_path, part)


@pytest.mark.parametrize(
    "old", [{"rope_theta": 123.0}, {"rope_theta": 123.0, "rope_scaling": {"type": "linear", "factor": 2}}]
)
def test_rope_of_older_configs_is_read(hf, tmp_path, old):
    config = ModelConfig.from_hf(read_config_json(change_config(hf, tmp_path / "hf", rope_parameters="absent", **old)))
    assert config.rope_theta == 123.0
    assert (config.rope_scaling is not None) == ("rope_scaling" in old)


def test_mask_token_out_of_range(hf, tmp_path):
    refuses_to_import(hf, tmp_path, "mask_token_id 211 is outside", mask_token_id="211")
    refuses_to_import(hf, tmp_path, "mask_token_id 126336 is outside", mask_token_id="126336")
    refuses_to_import(hf, tmp_path, "neither a number nor 'auto'", mask_token_id="first")


def test_tokenizer_of_another_model(tmp_path):
    reference = save_torch(torch_model(2), tmp_path / "hf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, reference / name)
    refuses_to_import(reference, tmp_path, "they belong to different models", mask_token_id="7")


def test_destination_that_holds_something_is_kept(hf, tmp_path):
    (tmp_path / "dst").mkdir()
    (tmp_path / "dst" / "precious.txt").write_text("mine")
    with pytest.raises(q.InputError, match="not empty"):
        import_(hf, tmp_path / "dst")
    assert (tmp_path / "dst" / "precious.txt").read_text() == "mine"
    with pytest.raises(q.InputError, match="is no model folder"):
        import_(hf, tmp_path / "dst", overwrite=True)
    assert (tmp_path / "dst" / "precious.txt").read_text() == "mine"
    import_(hf, tmp_path / "model")
    import_(hf, tmp_path / "model", overwrite=True, mask_token_id="8")
    assert q.load(tmp_path / "model").config.mask_token_id == 8
    with pytest.raises(q.InputError, match="overwrite its own source"):
        import_(hf, hf, overwrite=True)
    with pytest.raises(q.InputError, match="overwrite its own source"):
        export(tmp_path / "model", tmp_path / "model", overwrite=True)


def test_interruption_while_writing_keeps_the_old_folder(hf, tmp_path, monkeypatch):
    import_(hf, tmp_path / "dst")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "copy_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_(hf, tmp_path / "dst", overwrite=True, mask_token_id="9")
    assert [p.name for p in tmp_path.iterdir()] == ["dst"]
    assert q.load(tmp_path / "dst").config.mask_token_id == 7


def test_damaged_parameters_and_foreign_config(hf, tmp_path):
    import_(hf, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config | {"intermediate_size": 88}))
    with pytest.raises(q.InputError, match=r"layers.up_proj has shape \[3, 80, 48\]"):
        q.load(tmp_path / "ours")
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    for file in (tmp_path / "ours" / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(q.InputError, match="damaged"):
        q.load(tmp_path / "ours")


# ---- the programs as typed -----------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.slow
def test_programs_as_typed(hf, tmp_path):
    dst = tmp_path / "ours"
    done = run_program("converters.from_hf", "--src", hf, "--dst", dst, "--mask_token_id", "3")
    assert "mask token: 3" in done.stdout
    run_program("converters.to_hf", "--src", dst, "--dst", tmp_path / "back")
    assert_same_bytes(tmp_path / "back", hf)
    typo = run_program("converters.from_hf", "--scr", hf, "--dst", dst, check=None)
    assert_one_line_error(typo, "unknown option '--scr'", "did you mean '--src'?")
    missing = run_program("converters.from_hf", "--src", tmp_path / "nope", "--dst", dst, check=None)
    assert_one_line_error(missing, "no such folder")


@pytest.mark.slow
def test_full_disk_keeps_the_old_folder(hf, tmp_path):
    """A file-size limit stands for the full disk: the system refuses the write half-way."""
    dst = tmp_path / "ours"
    run_program("converters.from_hf", "--src", hf, "--dst", dst, "--mask-token-id", "3")
    for program, arguments in (
        ("converters.from_hf", ("--src", hf, "--dst", dst, "--overwrite")),
        ("converters.to_hf", ("--src", dst, "--dst", tmp_path / "back")),
    ):
        done = run_program(
            program, *arguments, *(["--mask-token-id", "4"] if program.endswith("from_hf") else []), check=None,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000)),
        )  # fmt: skip
        assert_one_line_error(done, "cannot be written")
    assert [p.name for p in tmp_path.iterdir()] == ["ours"]
    assert q.load(dst).config.mask_token_id == 3
