"""Every family's files: there and back byte for byte, what is said of them at the import, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, refuses, run_program
from family_folders import AR, CASES, MASK, save, tensors_of
from safetensors.torch import load_file, save_file

import qwen3llada_jax as q
from converters import from_hf
from converters.analyze import analyze
from converters.to_hf import export
from qwen3llada_jax import cli
from qwen3llada_jax.checkpoint import hf_import
from qwen3llada_jax.checkpoint.model_folder import read_config
from qwen3llada_jax.families.records import FAMILIES
from qwen3llada_jax.families.trained_with import trained_with
from qwen3llada_jax.model.config import named_config_json, read_config_json, read_model_config, unknown_keys

BY_NAME = {case.name: case for case in CASES}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A folder of every case."""
    parent = tmp_path_factory.mktemp("hub")
    for number, case in enumerate(CASES):
        save(case, parent, torch.bfloat16 if number % 2 else torch.float32)
    return parent


def import_(src: Path, dst: Path, **options):
    return from_hf.convert(str(src), dst, **{"dtype": None, "mask_token_id": str(MASK), **options})


def copy(src: Path, dst: Path, **changes) -> Path:
    """A copy of a folder with keys of its config.json changed ("absent": left out)."""
    shutil.copytree(src, dst)
    config = read_config_json(src) | changes
    (dst / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))
    return dst


def test_every_family_is_among_the_cases():
    assert {case.config["model_type"] for case in CASES} == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_there_and_back_every_byte_is_the_same(hub, tmp_path, capsys, case):
    src, ours, back = hub / case.name, tmp_path / "ours", tmp_path / "back"
    config = import_(src, ours, said=case.said)
    assert analyze(src, ours) == 0
    assert f"{config.family.name}: {len(tensors_of(case))} tensors" in capsys.readouterr().out
    export(ours, back)
    theirs, again = load_file(src / "model.safetensors"), load_file(back / "model.safetensors")
    assert set(again) == set(theirs)
    for name, tensor in theirs.items():
        assert again[name].dtype == tensor.dtype
        assert torch.equal(again[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert read_config(ours) == read_config(back) == config  # with nothing said
    written = read_config_json(back)
    assert written["model_type"] == case.config["model_type"]
    assert written["architectures"] == case.config["architectures"]
    # An export has none of its family's code beside it: `auto_map` names the one on the hub.
    shared = set(written) & set(case.config) - {"transformers_version", "torch_dtype", "mask_token_id", "auto_map"}
    assert {k: written[k] for k in shared - {"rope_scaling", "head_dim", "tie_word_embeddings"}} == {
        k: case.config[k] for k in shared - {"rope_scaling", "head_dim", "tie_word_embeddings"}
    }
    assert unknown_keys(case.config) == []


def test_files_keep_their_own_names_for_a_block_length(hub, tmp_path):
    for name, key in (("SDAR-1.7B-Chat-b16", "block_size"), ("Fast_dLLM_v2_7B", "bd_size")):
        import_(hub / name, tmp_path / name, said={"block_length": 12})
        written = read_config_json(tmp_path / name)
        assert written[key] == written["block_length"] == 12
        mixed = copy(hub / name, tmp_path / f"{name}-mixed", **{key: 8, "block_length": 16})
        refuses(lambda mixed=mixed: read_model_config(mixed), f"{key} is 8 and block_length 16; leave one of them out")


def test_names_of_models_tell_their_blocks_the_folders_before_the_files(hub, tmp_path):
    sdar = BY_NAME["SDAR-1.7B-Chat-b16"].name
    for folder, inside, length in (
        ("SDAR-8B-Chat-b32", "there/SDAR-4B-b64", 32), ("mine", "there/SDAR-4B-b64", 64), ("SDAR-8B", "absent", 4),
        ("SDAR-b8x", "absent", 4),
    ):  # fmt: skip
        found = read_model_config(copy(hub / sdar, tmp_path / folder, _name_or_path=inside))
        assert found.block_length == length
    hub_place = tmp_path / "models--JetLM--SDAR-1.7B-Chat-b8" / "snapshots" / "4f1e"
    assert read_model_config(copy(hub / sdar, hub_place)).block_length == 8
    assert read_model_config(copy(hub / sdar, tmp_path / "b-b8", block_size=2)).block_length == 2  # the file wins
    fast = copy(hub / "Fast_dLLM_v2_7B", tmp_path / "fast-b8", bd_size="absent")  # its names say no length
    assert read_model_config(fast).block_length == 32
    a2d = "Qwen3-0.6B-diffusion-mdlm-v0.1"
    bd3lm = copy(hub / a2d, tmp_path / "mine-too", _name_or_path="dllm/Qwen3-0.6B-diffusion-BD3LM-v0.1")
    assert read_model_config(bd3lm).block_origin == "aligned"
    a2d_of_neither = copy(hub / a2d, tmp_path / "neither")
    refuses(
        lambda: q.load(a2d_of_neither), "an A2D Qwen3 model is mdlm or bd3lm, and its name says neither",
        "--visibility full for mdlm", "--visibility block_causal for bd3lm",
    )  # fmt: skip
    assert read_model_config(a2d_of_neither, {"visibility": "block_causal"}).block_length == 32
    assert q.load(a2d_of_neither, visibility="full").config.visibility == "full"


# ---- what is asked for, and who says what ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "asked", "facts"),
    [
        ("Qwen3-0.6B", {}, AR),
        ("Qwen3-0.6B", {"visibility": "full"}, ("full", None, False, "prompt")),
        ("Qwen3-0.6B", {"visibility": "full", "shift": True}, ("full", None, True, "prompt")),
        ("Qwen3-0.6B", {"block_length": 4}, ("block_causal", 4, True, "start")),
        ("Qwen3-0.6B", {"visibility": "block_bias", "block_length": 8}, ("block_bias", 8, False, "prompt")),
        ("Qwen3-0.6B", {"shift": False, "block_origin": "aligned"}, ("block_causal", 1, False, "aligned")),
        ("Dream-v0-Instruct-7B", {"visibility": "full"}, ("full", None, True, "prompt")),
        (
            "Dream-v0-Instruct-7B",
            {"visibility": "block_causal", "block_length": 8},
            ("block_causal", 8, True, "prompt"),
        ),
        ("SDAR-4B-Chat", {"visibility": "full"}, ("full", None, False, "prompt")),
        ("Fast_dLLM_v2_7B", {"visibility": "block_causal"}, ("block_causal", 32, True, "start")),
        ("open-dcoder-0.5B", {"visibility": "block_causal", "block_length": 8}, ("block_causal", 8, False, "prompt")),
    ],
)
def test_what_is_asked_for_wins_over_files_and_family(hub, tmp_path, name, asked, facts):
    config = q.load(hub / name, **asked).config
    assert (config.visibility, config.block_length, config.shift, config.block_origin) == facts
    if name != "open-dcoder-0.5B":  # a folder of ours says all of it, and takes the same
        import_(hub / name, tmp_path / "ours")
        config = q.load(tmp_path / "ours", **asked).config
        assert (config.visibility, config.block_length, config.shift, config.block_origin) == facts


def test_what_cannot_be_is_refused(hub):
    refuses(lambda: q.load(hub / "Qwen3-0.6B", visibility="block_bias"), "visibility block_bias needs a block_length")
    refuses(lambda: q.load(hub / "Dream-v0-Instruct-7B", block_origin="start"), "block_origin start needs visibility")
    refuses(lambda: q.load(hub / "Qwen3-0.6B", visibility="causal"), "visibility 'causal' is unknown; choose one of")
    refuses(lambda: q.load(hub / "Qwen3-0.6B", shift="yes"), "config: shift")


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("Qwen3-0.6B", ["a Qwen3 is autoregressive"] * 4),
        ("SDAR-1.7B-Chat-b16", ["as every SDAR", "its name", "as every SDAR", "as every SDAR"]),
        ("SDAR-4B-Chat", ["as every SDAR", "config.json", "as every SDAR", "as every SDAR"]),
        ("Qwen3-0.6B-diffusion-mdlm-v0.1", ["mdlm by its name"] * 4),
        ("open-dcoder-0.5B", ["asked for", "the default", "asked for", "the default"]),
        ("mine", ["asked for", "asked for", "as every bd3lm", "as every bd3lm"]),
    ],
)
def test_who_says_what_a_model_was_trained_with(hub, name, by):
    source = named_config_json(hub / name)
    family = FAMILIES[source["model_type"]]
    facts = trained_with(family, family.read(source), BY_NAME[name].said)
    assert [fact.by for fact in facts.values()] == by
    assert tuple(fact.value for fact in facts.values()) == BY_NAME[name].facts


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("Qwen3-0.6B", ["family: Qwen3; autoregressive: it writes a token at a time, from those before it ("]),
        (
            "SDAR-1.7B-Chat-b16",
            [
                "family: SDAR; visibility block_causal, counted from the start, no shift (as every SDAR); "
                "blocks of 16 (its name)"
            ],
        ),
        (
            "Qwen3-0.6B-diffusion-mdlm-v0.1",
            ["visibility full, no shift (mdlm by its name)", "head: stored, and equal to the embedding: one array"],
        ),
        ("qwen3-llada", ["head: not the embedding, though config.json calls it tied: kept apart"]),
        ("open-dcoder-0.5B", ["visibility full, shift (asked for)"]),
    ],
)
def test_the_import_says_what_it_found(hub, tmp_path, capsys, name, lines):
    import_(hub / name, tmp_path / "ours", said=BY_NAME[name].said)
    out = capsys.readouterr().out
    assert all(line in out for line in lines), out
    assert ("head:" in out) == any("head:" in line for line in lines)


def test_the_flags_of_the_import():
    words = "--src a --dst b --visibility block_causal --block-length 8 --no-shift --block-origin start"
    typed = words.split()
    flags = cli.parse(from_hf.Flags, typed)
    assert (flags.visibility, flags.block_length, flags.shift, flags.block_origin) == (
        "block_causal",
        8,
        False,
        "start",
    )
    assert cli.parse(from_hf.Flags, typed[:4]).shift is None
    assert cli.parse(from_hf.Flags, [*typed[:4], "--shift"]).shift is True


def test_an_unadapted_tokenizers_mask_token_makes_a_causal_model_ambiguous(hub, tmp_path):
    """Open-dCoder's own config.json is a Qwen2's: only its tokenizer knows of `<M>`."""
    folder = copy(hub / "open-dcoder-0.5B", tmp_path / "m", mask_token_id="absent")
    for token in ("<M>", {"content": "<M>", "special": True}):
        (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": token}))
        refuses(lambda: q.load(folder), "names a mask token (<M>)", "--visibility full", "--shift")
        assert q.load(folder, visibility="full", shift=True).config.shift
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": None}))
    assert q.load(folder).config.is_autoregressive


@pytest.mark.soak
@pytest.mark.slow
def test_the_import_as_typed(tmp_path):
    done = run_program(
        "converters.from_hf", "--src", TINY, "--dst", tmp_path / "a", "--visibility", "full", "--shift"
    )  # fmt: skip
    assert "family: Qwen3; visibility full, shift (asked for)" in done.stdout
    assert q.load(tmp_path / "a").config.shift


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        (
            "Qwen3-0.6B",
            {"architectures": ["EfficientDLMForCausalLM"], "block_size": 32},
            ["Efficient-DLM is not supported", "calls itself a qwen3"],
        ),
        ("Qwen3-0.6B", {"architectures": "absent", "block_size": 32}, ["block_size is a key of SDAR (sdar)"]),
        ("Qwen3-0.6B", {"model_type": "edlm"}, ["Efficient-DLM is not supported"]),
        ("LLaDA-8B-Instruct", {"architectures": ["LLaDAMoEModelLM"]}, ["a mixture of experts (LLaDAMoEModelLM)"]),
        ("LLaDA-8B-Instruct", {"model_type": "llada2_moe"}, ["LLaDA 2 is a mixture of experts"]),
        ("SDAR-4B-Chat", {"model_type": "sdar_moe"}, ["mixture of experts", "use a dense SDAR"]),
        ("Qwen3-0.6B", {"num_experts": 8}, ["mixture of experts"]),
        ("Qwen3-0.6B", {"model_type": "nemotron_labs_diffusion"}, ["Nemotron"]),
        (
            "Dream-v0-Instruct-7B",
            {"architectures": ["DreamForCausalLM"], "block_size": 32},
            ["architectures names DreamForCausalLM, not DreamModel"],
        ),
        ("Dream-v0-Instruct-7B", {"use_mrope": True}, ["use_mrope is true"]),
        ("Qwen2.5-0.5B", {"bd_size": 32}, ["bd_size is a key of Fast-dLLM v2"]),
        ("SDAR-4B-Chat", {"d_model": 48}, ["d_model is a key of LLaDA (llada)", "of two families"]),
        ("LLaDA-8B-Instruct", {"hidden_size": 64}, ["hidden_size is 64 and d_model 48", "of two families"]),
        ("LLaDA-8B-Instruct", {"d_model": "absent", "hidden_size": 48}, ["hidden_size is 48 and d_model None"]),
        ("LLaDA-8B-Instruct", {"mlp_hidden_size": None}, ["lacks mlp_hidden_size"]),
        (
            "LLaDA-8B-Instruct",
            {"block_type": "sequential"},
            ["block_type is 'sequential'", "only 'llama' is supported"],
        ),
        ("LLaDA-8B-Instruct", {"alibi": True}, ["alibi is True; of a LLaDA it is not supported"]),
        ("LLaDA-8B-Instruct", {"include_qkv_bias": True}, ["include_qkv_bias is True"]),
        ("LLaDA-8B-Instruct", {"include_bias": True}, ["include_bias is True"]),
        ("LLaDA-8B-Instruct", {"attention_layer_norm": True}, ["attention_layer_norm is True"]),
        ("LLaDA-8B-Instruct", {"input_emb_norm": True}, ["input_emb_norm is True"]),
        ("LLaDA-8B-Instruct", {"scale_logits": True}, ["scale_logits is True"]),
        ("LLaDA-8B-Instruct", {"multi_query_attention": True}, ["multi_query_attention is True"]),
        ("LLaDA-8B-Instruct", {"rope_scaling": {"rope_type": "linear", "factor": 2}}, ["rope_scaling is {"]),
        ("LLaDA-8B-Instruct", {"residual_dropout": 0.1}, ["residual_dropout is 0.1"]),
        ("Llama-3.1-8B", {"mlp_bias": True}, ["mlp_bias is true"]),
        ("Llama-3.1-8B", {"hidden_size": 50}, ["hidden_size 50 is not a multiple of num_attention_heads 4"]),
        ("Qwen2.5-0.5B", {"use_sliding_window": True}, ["sliding-window"]),
        (
            "Qwen3-0.6B",
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            ["quantized weights (awq) are not supported; import the unquantized model"],
        ),
        ("Qwen3-0.6B", {"quantization_config": {"quant_method": "gptq"}}, ["(gptq)"]),
        (
            "Qwen3-0.6B",
            {"quantization": {"group_size": 64, "bits": 4}},
            ["quantization is there: quantized weights are"],
        ),
        (
            "open-dcoder-0.5B",
            {},
            ["a Qwen2 that names a mask token (205)", "--visibility full", "--block-length", "--shift"],
        ),
    ],
)
def test_configs_of_no_family_or_of_two(hub, tmp_path, name, changes, parts):
    folder = copy(hub / name, tmp_path / "model", **changes)
    refuses(lambda: import_(folder, tmp_path / "dst"), *parts)
    assert not (tmp_path / "dst").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config_of", "weights_of", "parts"),
    [
        ("Qwen3-0.6B", "LLaDA-8B-Instruct", ["the names are those of LLaDA, where model_type is qwen3"]),
        ("LLaDA-8B-Instruct", "SDAR-4B-Chat", ["the names are those of Qwen3, where model_type is llada"]),
        ("Qwen3-0.6B", "qwen3-llada", ["the names are those of Qwen3LLaDA (PyTorch), where model_type is qwen3"]),
        ("qwen3-llada", "Qwen3-0.6B", ["the names are those of Qwen3, where model_type is qwen3llada"]),
        ("SDAR-4B-Chat", "Dream-v0-Instruct-7B", ["no norms of queries and keys: this is a Qwen2 or Llama, not SDAR"]),
        ("Dream-v0-Instruct-7B", "SDAR-4B-Chat", ["norms of queries and keys: this is a Qwen3 or SDAR, not Dream"]),
        ("Llama-3.1-8B", "Dream-v0-Instruct-7B", ["biases of k, q, v only: this is a Qwen2, not Llama"]),
        ("Dream-v0-Instruct-7B", "Llama-3.1-8B", ["no biases: this is a Llama, not Dream"]),
    ],
)
def test_weights_of_another_family(hub, tmp_path, config_of, weights_of, parts):
    folder = copy(hub / config_of, tmp_path / "model")
    shutil.copy(hub / weights_of / "model.safetensors", folder / "model.safetensors")
    refuses(lambda: import_(folder, tmp_path / "dst"), *parts)
    assert analyze(folder) == 1


def test_adapters_and_other_formats_have_a_way_out(hub, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    lora = {f"base_model.model.model.layers.{n}.self_attn.q_proj.lora_{ab}.weight": torch.ones(2, 2) for n in (0, 1)
            for ab in "AB"}  # fmt: skip
    save_file(lora, adapter / "adapter_model.safetensors")
    refuses(lambda: q.load(adapter), "it is a LoRA adapter: merge it into its model")
    (adapter / "config.json").write_text(json.dumps(read_config_json(hub / "Qwen3-0.6B")))
    refuses(lambda: q.load(adapter), "weights of a LoRA adapter; merge it into its model")
    gguf = tmp_path / "gguf"
    gguf.mkdir()
    (gguf / "model.Q4_1.gguf").write_bytes(b"GGUF")
    refuses(lambda: q.load(gguf), "GGUF weights are not read; take the model's safetensors")
    (gguf / "config.json").write_text(json.dumps(read_config_json(hub / "Qwen3-0.6B")))
    refuses(lambda: import_(gguf, tmp_path / "dst"), "GGUF")
    refuses(lambda: import_(gguf / "model.Q4_1.gguf", tmp_path / "dst"), "GGUF")


def test_a_head_that_must_be_tied_and_is_not_is_refused_where_it_is_an_accident(hub, tmp_path):
    folder = copy(hub / "Qwen3-0.6B", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors") | {"lm_head.weight": torch.zeros(211, 48)}
    save_file(tensors, folder / "model.safetensors")
    refuses(lambda: q.load(folder), "tie_word_embeddings is true but lm_head.weight is not the embedding")
    assert hf_import.has_tied_head(folder, read_model_config(folder))
    assert not np.allclose(*(q.load(hub / "qwen3-llada").head, q.load(hub / "qwen3-llada").embed_tokens[...]))


def test_the_reference_systems_own_default_mask_token(hub, tmp_path):
    folder = copy(hub / "qwen3-llada", tmp_path / "m", mask_token_id="absent", vocab_size=151_936)
    assert read_model_config(folder).mask_token_id == 126_336
