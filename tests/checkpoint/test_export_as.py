"""Exports for others: files as SDAR's and A2D's, what no family can say, tokenizer, card, transformers' generate."""

import dataclasses
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, refuses, run_program
from safetensors.torch import load_file, save_file
from torch_twins import save_torch, torch_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import qwen3llada_jax as q
from converters import from_hf
from converters.export_as import CHOICES
from converters.model_card import front_matter, provenance
from converters.to_hf import export
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.model.config import read_config_json

BLOCKS = {"visibility": "block_causal", "block_length": 6, "shift": False, "block_origin": "start"}
SIZES = dict(vocab_size=1088, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
MASK = 1050  # the first row that no token of the bundled tokenizer owns, and the next of its own


@pytest.fixture(scope="module")
def hf(tmp_path_factory) -> dict[str, Path]:
    """Folders by the name of their base: tied Qwen3 in bfloat16, Qwen2, Llama, with the bundled tokenizer."""
    root = tmp_path_factory.mktemp("hf")
    common = dict(SIZES, num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=1024)
    torch.manual_seed(3)
    models = {
        "qwen3": torch_model(0, torch.bfloat16, **SIZES, eos_token_id=1024),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**common, tie_word_embeddings=True)),
        "llama": LlamaForCausalLM(LlamaConfig(**common, tie_word_embeddings=False)),
    }
    for name, model in models.items():
        save_torch(model, root / name)
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(TINY / file, root / name / file)
    return {name: root / name for name in models}


@pytest.fixture(scope="module")
def ours(hf, tmp_path_factory):
    """Make (once) the model folder of a base under some facts."""
    root, made = tmp_path_factory.mktemp("ours"), {}

    def make(base: str, **facts) -> Path:
        key = (base, *sorted(facts.items()))
        if key not in made:
            made[key] = root / str(len(made))
            from_hf.convert(str(hf[base]), made[key], dtype=None, mask_token_id="auto", said=facts)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch):
    """Whether the code of a model on the hub may be run is asked of nobody."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    yield
    assert asked == []


def facts_of(folder: Path) -> dict:
    """All that makes a model what it is, as it is opened."""
    config = q.load(folder).config
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def test_a_block_causal_model_as_sdar_has_exactly_its_keys(ours, tmp_path):
    source, dst = ours("qwen3", **BLOCKS), tmp_path / "sdar"
    export(source, dst, family="sdar")
    assert read_config_json(dst) == {
        "architectures": ["SDARForCausalLM"], "model_type": "sdar", "hidden_act": "silu", "vocab_size": 1088,
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": None,
        "max_position_embeddings": 1024, "tie_word_embeddings": False, "attention_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.05, "eos_token_id": 1024, "mask_token_id": MASK,
        "block_size": 6, "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False,
        "attn_implementation": "flex_attention", "debug": False, "ep_size": 1, "fuse_cross_entropy": True,
        "micro_forward": False, "skip_checkpoint": False, "use_deepep": False,
        "auto_map": {
            "AutoConfig": "JetLM/SDAR-4B-Chat--configuration_sdar.SDARConfig",
            "AutoModel": "JetLM/SDAR-4B-Chat--modeling_sdar.SDARModel",
            "AutoModelForCausalLM": "JetLM/SDAR-4B-Chat--modeling_sdar.SDARForCausalLM",
        },
    }  # fmt: skip
    tensors = load_file(dst / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}
    assert torch.equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])
    tokenizer = AutoTokenizer.from_pretrained(dst, trust_remote_code=False)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|MASK|>", MASK)
    generation = json.loads((dst / "generation_config.json").read_text())
    assert (generation["eos_token_id"], generation["temperature"], generation["top_k"]) == ([1026, 1024], 0.8, 50)


@pytest.mark.slow
def test_an_exported_sdar_is_the_same_model_again(ours, hf, tmp_path, capsys):
    source, dst, again = ours("qwen3", **BLOCKS), tmp_path / "sdar", tmp_path / "again"
    export(source, dst, family="sdar")
    assert "servers of SDAR may take 151669 for the mask token" in capsys.readouterr().err
    from_hf.convert(str(dst), again, dtype=None, mask_token_id="auto")
    assert capsys.readouterr().err == ""
    theirs, back = facts_of(source), facts_of(again)
    changed = {name for name in theirs if theirs[name] != back[name]}
    # SDAR's generation config counts for its sampling; a Qwen3's was of the autoregressive model.
    assert changed == {"model_type", "tie_word_embeddings", "sampling", "live_vocab_size"}
    assert back["live_vocab_size"] == MASK + 1  # the mask token is one of the tokenizer's now, and never written
    was, now = load_file(hf["qwen3"] / "model.safetensors"), load_file(dst / "model.safetensors")
    assert set(now) == set(was) | {"lm_head.weight"}
    assert all(torch.equal(now[name], was[name]) for name in was)
    tokens = np.arange(20)[None] * 7 % 1000
    np.testing.assert_array_equal(q.load(source)(tokens), q.load(again)(tokens))
    export(again, tmp_path / "twice")
    assert read_config_json(tmp_path / "twice") == read_config_json(dst)
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (dst / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("base", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("facts", [{"visibility": "full"}, BLOCKS | {"block_origin": "aligned"}], ids=["mdlm", "bd3lm"])
def test_as_a2d_it_is_that_of_its_base(ours, tmp_path, base, facts):
    source, dst = ours(base, **facts), tmp_path / "a2d"
    export(source, dst, family="a2d")
    config = read_config_json(dst)
    name = {"qwen3": "A2DQwen3LMHeadModel", "qwen2": "A2DQwen2LMHeadModel", "llama": "A2DLlamaLMHeadModel"}[base]
    assert (config["model_type"], config["architectures"]) == (f"a2d-{base}", [name])
    theirs, back = facts_of(source), facts_of(dst)
    assert {key for key in theirs if theirs[key] != back[key]} == {"model_type"}
    assert AutoTokenizer.from_pretrained(dst).mask_token == "<|mask|>"


def test_other_names_for_the_same_tensors(ours, tmp_path):
    export(ours("llama", visibility="full"), tmp_path / "llada", family="llada")
    config, tensors = read_config_json(tmp_path / "llada"), load_file(tmp_path / "llada" / "model.safetensors")
    assert (config["d_model"], config["n_kv_heads"], config["mask_token_id"]) == (32, 2, MASK)
    assert "model.transformer.blocks.1.ff_proj.weight" in tensors
    assert not {"visibility", "block_length", "shift", "sampling"} & set(config)
    export(tmp_path / "llada", tmp_path / "llama", family="llama")
    back, first = load_file(tmp_path / "llama" / "model.safetensors"), tmp_path / "first"
    export(ours("llama", visibility="full"), first)
    assert all(torch.equal(back[name], t) for name, t in load_file(first / "model.safetensors").items())
    export(ours("qwen2", visibility="full", shift=True), tmp_path / "dream", family="dream")
    config = read_config_json(tmp_path / "dream")
    assert (config["model_type"], config["tie_word_embeddings"]) == ("Dream", False)
    assert "head_dim" not in config

    export(ours("qwen2", **BLOCKS | {"shift": True}), tmp_path / "fast", family="fast-dllm")
    config = read_config_json(tmp_path / "fast")
    assert (config["model_type"], config["bd_size"], config["tie_word_embeddings"]) == ("Fast_dLLM_Qwen", 6, True)
    assert not (tmp_path / "fast" / "custom_generate").exists()  # its code brings a sampler
    export(ours("qwen3", visibility="full"), tmp_path / "torch", family="qwen3llada")
    assert "backbone.backbone.layers.1.mlp.up_proj.weight" in load_file(tmp_path / "torch" / "model.safetensors")
    assert facts_of(tmp_path / "torch") == facts_of(ours("qwen3", visibility="full")) | {"model_type": "qwen3llada"} | {
        "live_vocab_size": MASK + 1
    }


def test_tensors_of_another_dtype_keep_it_under_another_name(hf, tmp_path):
    shutil.copytree(hf["llama"], tmp_path / "hf")
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"] = tensors["model.layers.1.mlp.gate_proj.weight"].half()
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    from_hf.convert(str(tmp_path / "hf"), tmp_path / "m", dtype=None, mask_token_id="auto", said={"visibility": "full"})
    export(tmp_path / "m", tmp_path / "llada", family="llada")
    found = load_file(tmp_path / "llada" / "model.safetensors")
    halves = {name for name, tensor in found.items() if tensor.dtype == torch.float16}
    assert halves == {"model.transformer.blocks.1.ff_proj.weight"}
    assert torch.equal(found[halves.pop()], tensors["model.layers.1.mlp.gate_proj.weight"])


@pytest.mark.parametrize(
    ("base", "facts", "family", "parts"),
    [
        (
            "qwen3",
            {"visibility": "full"},
            "sdar",
            ["the model is not an SDAR: it was trained with visibility full", "block_causal"],
        ),
        ("qwen3", {"visibility": "block_bias", "block_length": 4}, "sdar", ["visibility block_bias"]),
        ("qwen3", {"visibility": "block_bias", "block_length": 4}, "a2d", ["block_bias, an A2D Qwen3 with full or"]),
        (
            "qwen3",
            BLOCKS | {"block_origin": "prompt"},
            "sdar",
            ["counted from its prompt's end, those of an SDAR from"],
        ),
        ("qwen3", BLOCKS, "a2d", ["counted from position 0", "written --as qwen3 or sdar"]),
        ("qwen3", BLOCKS | {"shift": True}, "sdar", ["(shift), an SDAR at its own", "written --as qwen3"]),
        ("qwen2", BLOCKS, "sdar", ["it has no norms of queries and keys, which an SDAR has"]),
        ("qwen3", BLOCKS, "qwen2", ["it has norms of queries and keys, which a Qwen2 lacks"]),
        ("qwen2", {"visibility": "full"}, "llama", ["it has biases of q, k, v, a Llama of q, k, v, o"]),
        ("llama", {"visibility": "full"}, "dream", ["it has biases of nothing, a Dream of q, k, v"]),
        ("qwen2", {"visibility": "full"}, "dream", ["its own position, a Dream at the one before it (shift)"]),
        ("qwen2", {"visibility": "full"}, "fast-dllm", ["visibility full, a Fast-dLLM v2 with block_causal"]),
    ],
)
def test_what_a_family_cannot_say_is_refused(ours, tmp_path, base, facts, family, parts):
    refuses(lambda: export(ours(base, **facts), tmp_path / "x", family=family), *parts, "it can be written --as ")
    assert not (tmp_path / "x").exists()


def test_values_that_a_config_has_no_place_for_are_refused(ours, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(ours("llama", visibility="full"), folder)
    model = q.load(folder)
    assert model.config.head_dim == 8
    config = read_config_json(folder) | {"prompt_sees_answer": True, "visibility": "block_bias", "block_length": 4}
    (folder / "config.json").write_text(json.dumps(config))
    refuses(lambda: export(folder, tmp_path / "x", family="a2d"), "visibility block_bias")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    config = config | {"visibility": "full", "block_length": None, "prompt_sees_answer": False}
    config |= {"rope_parameters": rope, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 1e4}
    (folder / "config.json").write_text(json.dumps(config))
    refuses(lambda: export(folder, tmp_path / "x", family="llada"), "no place for rope_scaling")
    config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"] = 16, 2, 1
    del config["rope_parameters"], config["rope_scaling"]
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    refuses(lambda: export(folder, tmp_path / "x", family="llada"), "no place for head_dim 16")


def test_the_choices_are_the_families_and_the_program_takes_them(ours, tmp_path):
    assert CHOICES == ("qwen3", "qwen2", "llama", "qwen3llada", "sdar", "a2d", "llada", "dream", "fast-dllm")
    done = run_program("converters.to_hf", "--src", "nowhere", "--dst", tmp_path / "x", "--as", "sdarr", check=2)
    assert "argument --as: invalid choice: 'sdarr'" in done.stderr


def test_an_autoregressive_model_stays_what_transformers_writes_with(ours, hf, tmp_path):
    source, dst = ours("llama"), tmp_path / "ar"
    export(source, dst)
    assert "is_causal" not in read_config_json(dst)
    assert not (dst / "custom_generate").exists()
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (dst / name).read_bytes() == (hf["llama"] / name).read_bytes()
    ids = torch.tensor([[5, 9, 300, 11]])
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (hf["llama"], dst)]
    torch.testing.assert_close(models[0](ids).logits, models[1](ids).logits)
    assert "autoregressive" in (dst / "README.md").read_text()
    assert facts_of(dst) == facts_of(source)


def test_a_token_that_is_there_becomes_the_mask_token_and_text_does_not(hf, tmp_path, capsys):
    for mask, named in ((1030, True), (600, False), (1060, False)):
        source, dst = tmp_path / f"m{mask}", tmp_path / f"x{mask}"
        from_hf.convert(str(hf["qwen3"]), source, dtype=None, mask_token_id=str(mask), said={"visibility": "full"})
        export(source, dst)
        tokenizer = AutoTokenizer.from_pretrained(dst)
        assert (dst / "tokenizer.json").read_bytes() == (hf["qwen3"] / "tokenizer.json").read_bytes()
        if not named:
            assert tokenizer.mask_token is None
        else:
            assert tokenizer.mask_token_id == mask
        assert facts_of(dst)["live_vocab_size"] == facts_of(source)["live_vocab_size"]
    said = capsys.readouterr().err
    assert "mask token 600 is a piece of real text" in said
    assert "row 1060 is not the next of the tokenizer's" in said


def test_settings_that_transformers_knows_go_into_its_file(ours, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(ours("qwen3", **BLOCKS), folder)
    config = read_config_json(folder) | {"sampling": {"temperature": 0.6, "top_p": 0.95, "dynamic": 0.9}}
    (folder / "config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "sdar", family="sdar")
    generation = json.loads((tmp_path / "sdar" / "generation_config.json").read_text())
    assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (True, 0.6, 0.95)
    assert facts_of(tmp_path / "sdar")["sampling"] == facts_of(folder)["sampling"]
    del config["sampling"]["dynamic"]
    (folder / "config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "plain", family="sdar")
    assert "sampling" not in read_config_json(tmp_path / "plain")
    assert facts_of(tmp_path / "plain")["sampling"][:1] == (("temperature", 0.6),)


# ---- the model card ----------------------------------------------------------------------------------------------


def test_the_card_says_what_is_known_and_nothing_else(ours, hf, tmp_path):
    export(ours("qwen3", **BLOCKS), tmp_path / "plain")
    text = (tmp_path / "plain" / "README.md").read_text()
    head = front_matter(tmp_path / "plain" / "README.md")
    assert head == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["diffusion", "masked-diffusion"],
    }
    for part in ("# plain", "| block length | 6 |", "`block_causal`", "position 0", "(shift: no)", f"| {MASK} |",
                 "python -m sample.generate", 'custom_generate="FOLDER"', "1024, 1026"):  # fmt: skip
        assert part in text, part
    assert "Training" not in text
    assert "--chat" not in text

    base = tmp_path / "base"
    shutil.copytree(hf["qwen3"], base)
    (base / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: Qwen/Qwen3-0.6B\n---\nA model.\n")
    from_hf.convert(str(base), tmp_path / "mine", dtype=None, mask_token_id="auto", said={"visibility": "full"})
    run = tmp_path / "run"
    (run / "checkpoints" / "40").mkdir(parents=True)
    shutil.copytree(tmp_path / "mine" / "params", run / "checkpoints" / "40" / "params")
    config = {k: v for k, v in read_config_json(tmp_path / "mine").items() if k != "hf_export"}
    (run / "config.json").write_text(json.dumps(config))
    model_folder.copy_tokenizer(tmp_path / "mine", run)
    (run / "chat_template.jinja").write_text("{{ messages }}")
    settings = {
        "model": {"base_model_path": None, "qwen3llada_model_path": str(tmp_path / "mine")},
        "training": {"mode": "sft", "lr": 2e-5, "batch_size": 12},
        "dataset": {"name": None, "mixture": [{"name": "org/one", "config": "a"}, {"name": "/home/me/two.jsonl"}]},
    }
    (run / "training.yaml").write_text(yaml.safe_dump(settings))
    records = [
        {"step": 20, "eval_loss": 3.5},
        {"step": 40, "eval_loss": 2.25, "eval_ce_t1": 9.0},
        {"step": 60, "eval_loss": 1},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step"')
    export(run, tmp_path / "tuned")
    text, head = (tmp_path / "tuned" / "README.md").read_text(), front_matter(tmp_path / "tuned" / "README.md")
    assert (head["license"], head["base_model"]) == ("apache-2.0", "Qwen/Qwen3-0.6B")
    assert str(tmp_path) not in text
    assert "eval_ce_t1" not in text
    for part in ("| updates | 40 |", "`mine`", "--model model --chat --prompt",
                 "| objective | sft |", "| learning rate | 2e-05 |", "`org/one a`, `two.jsonl`",
                 "| eval_loss (after 40 updates) | 2.25 |", "huggingface.co/Qwen/Qwen3-0.6B"):  # fmt: skip
        assert part in text, part


def test_the_card_names_the_base_that_came_from_the_hub(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(from_hf, "model_folder", lambda _: hf["llama"])
    from_hf.convert("org/llama-1", tmp_path / "m", dtype=None, mask_token_id="auto", said={"visibility": "full"})
    export(tmp_path / "m", tmp_path / "x")
    assert front_matter(tmp_path / "x" / "README.md")["base_model"] == "org/llama-1"
    assert "hf_export" not in read_config_json(tmp_path / "x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for base in ("org/llama-2", "models/gone"):
        (tmp_path / "run" / "training.yaml").write_text(yaml.safe_dump({"model": {"base_model_path": base}}))
        monkeypatch.setattr(
            huggingface_hub, "try_to_load_from_cache", lambda name, _: "/there" if name == "org/llama-2" else None
        )
        assert provenance(tmp_path / "run") == ({"base_model": base} if base.startswith("org") else {})


# ---- transformers' generate --------------------------------------------------------------------------------------

PROMPTS = [[5, 9, 300, 11, 77], [400, 2, 8], [7, 90, 500, 611, 12, 44, 13, 3], [31]]


def soaked(*values):
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("facts", "settings"),
    [
        soaked({"visibility": "full"}, {"gen_length": 24, "steps": 12, "block_length": 8}),
        ({"visibility": "full", "shift": True}, {"gen_length": 18, "steps": 6, "block_length": 9}),
        (BLOCKS, {"gen_length": 20, "steps": 12}),
        soaked(BLOCKS, {"gen_length": 12, "steps": 4, "visibility": "full"}),
        soaked(BLOCKS | {"shift": True}, {"gen_length": 18, "steps": 9}),
        soaked(BLOCKS | {"block_origin": "prompt"}, {"gen_length": 18, "steps": 6}),
        (BLOCKS | {"block_origin": "aligned"}, {"gen_length": 18, "steps": None}),
        soaked({"visibility": "block_bias", "block_length": 5}, {"gen_length": 15, "steps": 6}),
        (BLOCKS | {"shift": True, "causal_context": True}, {"gen_length": 18, "steps": 9}),
        soaked(BLOCKS | {"block_origin": "prompt", "causal_context": True}, {"gen_length": 18, "steps": 6}),
    ],
)
def test_transformers_generate_finds_the_same_tokens(tmp_path, facts, settings):
    sizes = dict(SIZES, vocab_size=611, initializer_range=0.4)
    save_torch(torch_model(4, **sizes, eos_token_id=[7, 50, 90, 300]), tmp_path / "hf")
    facts = dict(facts)
    is_causal = {"causal_context": True} if facts.pop("causal_context", False) else {}
    from_hf.convert(str(tmp_path / "hf"), tmp_path / "ours", dtype=None, mask_token_id="605", said=facts)
    config = read_config_json(tmp_path / "ours") | is_causal
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config))
    export(tmp_path / "ours", tmp_path / "out")
    prompts = [[i % 600 for i in row] for row in PROMPTS]
    result = q.generate(q.load(tmp_path / "ours"), prompts, q.SamplerConfig(**settings))
    expected = [row[: settings["gen_length"]] for row in result.answers()]

    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in prompts])
    real = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in prompts])
    theirs = {k: v for k, v in settings.items() if k != "gen_length"} | {"max_new_tokens": settings["gen_length"]}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    found = model.generate(
        ids, attention_mask=real, custom_generate=str(tmp_path / "out"), trust_remote_code=True, **theirs
    )
    assert found[:, :longest].tolist() == ids.tolist()
    assert found[:, longest:].tolist() == expected
    assert len({token for row in expected for token in row}) > 12
    assert ("read from left to right" in (tmp_path / "out" / "README.md").read_text()) == bool(is_causal)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True, attn_implementation="eager")
    row = alone.generate(torch.tensor([prompts[2]]), **theirs)  # the folder's own sampler, without naming it
    assert row[0, len(prompts[2]) :].tolist() == expected[2]


def test_custom_generate_refuses_what_it_has_not(tmp_path):
    from converters.custom_generate import generate

    model = torch_model(0)
    ids = torch.tensor([[1, 2]])
    for settings, part in (
        ({"num_beams": 4}, "num_beams"),
        ({"max_new_tokens": 9, "block_length": 4}, "try 12"),
        ({"max_new_tokens": 8, "block_length": 4, "steps": 3}, "try 4"),
        ({"attention_mask": torch.tensor([[1, 0]])}, "left"),
        ({"visibility": "causal"}, "visibility must be"),
    ):
        with pytest.raises(ValueError, match=part):
            generate(ids, model=model, **settings)
