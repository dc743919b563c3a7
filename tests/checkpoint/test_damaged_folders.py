"""K6 and acceptance 5: folders whose config.json or index.json says something else: right, or one short line."""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import refuses
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from converters.analyze import analyze
from converters.from_hf import convert
from converters.to_hf import export
from qwen3llada_jax import errors
from qwen3llada_jax.checkpoint.hf_import import plan
from qwen3llada_jax.io.safetensors_folder import INDEX, stored_tensors
from qwen3llada_jax.model.config import ModelConfig, read_config_json, read_model_config


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    """A very small Hugging Face folder of several shards."""
    model = torch_model(3, vocab_size=64, hidden_size=16, num_hidden_layers=2, intermediate_size=24, head_dim=8)
    folder = save_torch(model, tmp_path_factory.mktemp("sharded"), max_shard_size="12KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def folder(sharded, tmp_path) -> Path:
    shutil.copytree(sharded, tmp_path / "hf")
    return tmp_path / "hf"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def renamed(folder: Path, rename) -> None:
    """The same weights under other names, in one file."""
    tensors: dict = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink()
    save_file(
        {new: t for name, t in tensors.items() if (new := rename(name)) is not None}, folder / "model.safetensors"
    )


# ---- keys of a wrong type ------------------------------------------------------------------------------------

STRANGE = ["x", "", None, True, [], [1], {}, {"a": 1}, 1.5, -1, 0, 10**400, math.nan, math.inf, "9" * 40_000]


@pytest.mark.slow
@pytest.mark.parametrize("key", [
    "vocab_size", "hidden_size", "num_hidden_layers", "head_dim", "rms_norm_eps", "tie_word_embeddings", "eos_token_id",
    "mask_token_id", "rope_parameters", "layer_types", "initializer_range", "block_length", "visibility", "model_type",
    "live_vocab_size", "rope_theta", "rope_scaling", "hidden_act", "prompt_sees_answer", "quantization_config",
])  # fmt: skip
def test_k6_a_key_of_a_wrong_type_in_config_json_is_one_line(folder, key):
    source = json.loads((folder / "config.json").read_text())
    for value in STRANGE:
        (folder / "config.json").write_text(json.dumps(source | {key: value}))
        outcome(folder)


@pytest.mark.parametrize("notes", [3, [], {"dtypes": 3}, {"dtypes": {"x": "int3"}}, {"tied_head_written": "yes"}])
def test_k6_notes_for_the_export_that_no_import_wrote(folder, tmp_path, notes):
    convert(str(folder), tmp_path / "ours", dtype=None, mask_token_id="7")
    edit(tmp_path / "ours" / "config.json", lambda c: c.update(hf_export=notes))
    if notes:
        refuses(lambda: export(tmp_path / "ours", tmp_path / "back"), "hf_export")


@pytest.mark.parametrize("text", ["", "nope", "[]", "[" * 100_000, '{"a": 1', "9" * 5000, "null", '"x"', "{}"])
def test_k6_a_config_json_that_is_none(folder, text):
    for name in ("config.json", INDEX):
        kept = (folder / name).read_text()
        (folder / name).write_text(text)
        refuses(lambda: q.load(folder), str(folder))
        (folder / name).write_bytes(b"\xff\xfe" + text.encode())
        refuses(lambda: q.load(folder), str(folder))
        (folder / name).write_text(kept)


@pytest.mark.parametrize(
    ("scaling", "parameters", "part"),
    [
        ({"type": "yarn", "factor": 4.0}, {"rope_type": "default", "rope_theta": 1e6}, "contradict each other about"),
        ({"rope_type": "yarn", "factor": 4.0}, {"rope_type": "yarn", "factor": 2.0}, "(4.0 and 2.0)"),
        ({"type": "yarn", "rope_type": "linear", "factor": 4.0}, None, "says type 'yarn' and rope_type 'linear'"),
        ({"factor": 4.0}, None, "has the unknown parameter 'factor'; name the kind"),
        (None, {"rope_theta": 5.0}, "about 'rope_theta' (1000000.0 and 5.0)"),
    ],
)
def test_k4_rope_that_is_said_twice_is_not_taken_from_one_place_in_silence(folder, scaling, parameters, part):
    """A relative of K4: Qwen3's advice for long texts (a rope_scaling), added to a newer file, had no effect."""
    change = {"rope_theta": 1e6, "rope_scaling": scaling, "rope_parameters": parameters}
    edit(folder / "config.json", lambda c: c.update(change))
    refuses(lambda: q.load(folder), part)


def test_rope_said_twice_alike_is_taken(folder):
    scaling = {"type": "yarn", "factor": 4.0}
    both = {"rope_theta": 1e6, "rope_scaling": scaling, "rope_parameters": {"rope_type": "yarn", "factor": 4}}
    edit(folder / "config.json", lambda c: c.update(both))
    assert q.load(folder).config.rope_scaling.kind == "yarn"
    again = ModelConfig.from_hf(q.load(folder).config.to_hf())
    assert again == q.load(folder).config


# ---- long lists, and their cause -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rename", "part"),
    [
        (lambda n: n.removeprefix("model."), "the names lack `model.`: saved from the model without its head"),
        (lambda n: f"module.{n}", "the names begin with `module.`: they were saved from a DistributedDataParallel"),
        (lambda n: f"_orig_mod.{n}", "they were saved from a compiled model"),
        (lambda n: f"base_model.model.{n}.lora_A", "a LoRA adapter; merge it"),
        (lambda n: None if "q_norm" in n or "k_norm" in n else n, "this is a Qwen2 or Llama, not Qwen3"),
        (lambda n: None if "layers.1." in n else n, "config.json has num_hidden_layers 2, the weights 1"),
        (lambda n: "".join(chr(ord(c) + 1) for c in n), "weights and config.json do not agree: missing"),
    ],
)
def test_k6_many_wrong_tensors_are_ten_and_a_count_and_a_cause(folder, rename, part):
    renamed(folder, rename)
    line = refuses(lambda: q.load(folder), part)
    assert line.count("missing") + line.count("unexpected") <= 10
    assert "more" in line or "Qwen2" in part  # whose four norms are all of them


def test_k6_biases_and_layers_of_another_config(folder):
    edit(folder / "config.json", lambda c: c.update(attention_bias=True))
    refuses(lambda: q.load(folder), "they have no biases; set attention_bias to false")
    edit(folder / "config.json", lambda c: c.update(attention_bias=False, num_hidden_layers=900))
    refuses(lambda: q.load(folder), "config.json has num_hidden_layers 900, the weights 2", "more")


def test_k6_no_error_line_is_longer_than_a_screen():
    many = [f"model.layers.{i}.self_attn.q_proj.weight" for i in range(400)]
    text = errors.listed(many)
    assert text.startswith("model.layers.0.")
    assert text.endswith(f"… and {400 - text.count('weight'):,} more")
    assert len(text) < 320
    assert errors.listed(["a", "b"]) == "a, b"
    assert errors.listed(str(i) for i in range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, … and 2 more"
    assert errors.listed(["x" * 9000]).startswith("xxx")
    line = str(q.InputError(f"{'a' * 900}: is wrong; fix it"))
    assert len(line) < 500
    assert line.startswith("aaa")
    assert line.endswith("is wrong; fix it")


# ---- indexes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shard",
    [None, 3, [], "", "../model.safetensors", "/etc/passwd", "a\0b.safetensors", "x" * 300 + ".safetensors", "."],
)
def test_k6_an_index_that_names_no_file(folder, shard):
    edit(folder / INDEX, lambda c: c["weight_map"].update({"model.norm.weight": shard}))
    refuses(lambda: q.load(folder), INDEX, "is no file of this folder")


def test_k6_an_index_that_names_the_wrong_shard(folder):
    shards = sorted({*json.loads((folder / INDEX).read_text())["weight_map"].values()})

    def swap(content):
        here = content["weight_map"]["model.norm.weight"]
        content["weight_map"]["model.norm.weight"] = next(s for s in shards if s != here)

    edit(folder / INDEX, swap)
    refuses(lambda: q.load(folder), "names tensors that its shards do not hold: model.norm.weight")


def test_k6_tensors_that_two_files_hold(folder):
    """A relative: of two files without an index the last won, in silence."""
    (folder / INDEX).unlink()
    first = sorted(folder.glob("*.safetensors"))[0]
    save_file({name: t + 1 for name, t in load_file(first).items()}, folder / "zzz.safetensors")
    refuses(lambda: q.load(folder), "tensors that several of its files hold")


# ---- any mutation --------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=20),
    st.sampled_from(["qwen3", "silu", "default", "yarn", "linear", "llama3", "full", "block_bias", "block_causal",
                     "full_attention", "model.norm.weight", "model-00001-of-00004.safetensors", 16, 24, 8, 64, 2, 4]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4), max_leaves=8
)
CONFIG_KEYS = st.sampled_from([
    *(f.name for f in ModelConfig.__dataclass_fields__.values()), "model_type", "layer_types", "rope_parameters",
    "rope_theta", "rope_scaling", "hidden_act", "use_sliding_window", "attention_dropout", "hf_export", "dtype",
    "rope_parameters.rope_type", "rope_parameters.factor", "rope_scaling.factor", "rope_scaling.type", "num_experts",
])  # fmt: skip
MUTATIONS = st.lists(st.tuples(CONFIG_KEYS | st.text(max_size=10), VALUES | st.just(...)), min_size=1, max_size=4)
SHARD_MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["weight_map", "metadata", "one tensor", "one shard", "text"]), VALUES | st.just(...)),
    min_size=1,
    max_size=3,
)


def mutate(tree, changes) -> None:
    """Set keys (a dot steps into an object) to other values, or remove them (`...`)."""
    for key, value in changes:
        *parents, last = key.split(".") if "." in key else [key]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {}) if isinstance(node, dict) else {}
            node = node if isinstance(node, dict) else {}
        if value is ...:
            node.pop(last, None)
        else:
            node[last] = value


def outcome(folder: Path) -> str:
    """What opening says: nothing is raised but an InputError of one short line; else it opens as its files say."""
    try:
        config = read_model_config(folder)
        plan(folder, config)
    except q.InputError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 500
        return line
    # What is opened is what the files hold, byte for byte, and its config can be written and read again.
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    stored, params = stored_tensors(folder), q.load(folder)
    assert params.embed_tokens.shape == stored["model.embed_tokens.weight"].shape
    return ""


def check_config(folder: Path, changes) -> None:
    source = read_config_json(folder.parent / "pristine")
    mutated = copy.deepcopy(source)
    mutate(mutated, changes)
    (folder / "config.json").write_text(json.dumps(mutated))
    outcome(folder)


def check_index(folder: Path, changes) -> None:
    index = json.loads((folder.parent / "pristine" / INDEX).read_text())
    text = None
    for what, value in changes:
        names = sorted(index["weight_map"]) if isinstance(index.get("weight_map"), dict) else []
        if what in ("weight_map", "metadata"):
            mutate(index, [(what, value)])
        elif what == "text":
            text = value if isinstance(value, str) else json.dumps(value if value is not ... else None)
        elif names and isinstance(index["weight_map"], dict):
            key = names[0] if what == "one shard" else str(value)[:50]
            index["weight_map"].pop(key, None)
            if value is not ...:
                index["weight_map"][key] = value
    (folder / INDEX).write_text(json.dumps(index) if text is None else text)
    outcome(folder)


@pytest.fixture(scope="module")
def to_mutate(sharded, tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("mutate")
    for name in ("pristine", "hf"):
        shutil.copytree(sharded, base / name)
    return base / "hf"


def fuzz(examples: int):
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=quiet)


@pytest.mark.slow
@given(changes=MUTATIONS)
@example(changes=[("num_hidden_layers", 10**9)])
@example(changes=[("vocab_size", 2**31 - 1), ("hidden_size", 2**31 - 2), ("intermediate_size", 2**31 - 1)])
@fuzz(60)
def test_any_config_json_is_right_or_one_line(to_mutate, changes):
    shutil.copy(to_mutate.parent / "pristine" / INDEX, to_mutate / INDEX)
    check_config(to_mutate, changes)


@pytest.mark.slow
@given(changes=SHARD_MUTATIONS)
@fuzz(60)
def test_any_index_json_is_right_or_one_line(to_mutate, changes):
    shutil.copy(to_mutate.parent / "pristine" / "config.json", to_mutate / "config.json")
    check_index(to_mutate, changes)


@pytest.mark.slow
@pytest.mark.soak
@given(
    config=MUTATIONS,
    index=SHARD_MUTATIONS,
    which=st.sampled_from(["config", "index", "both"]),
    converts=st.integers(0, 4).map(lambda n: n == 0),
)
@fuzz(1000)
def test_any_folder_imports_or_says_why(to_mutate, config, index, which, converts):
    for name in ("config.json", INDEX):
        shutil.copy(to_mutate.parent / "pristine" / name, to_mutate / name)
    if which != "index":
        check_config(to_mutate, config)
    if which != "config":
        check_index(to_mutate, index)
    if not converts:
        return
    target = to_mutate.parent / "ours"
    try:
        convert(str(to_mutate), target, dtype=None, mask_token_id="7", overwrite=True)
    except q.InputError as error:
        line = str(error)
        assert len(line) < 500
        return
    ours, theirs = q.load(target), q.load(to_mutate)
    np.testing.assert_array_equal(ours.layers.q_proj[...], theirs.layers.q_proj[...])
    assert analyze(to_mutate, target) == 0
    edit(target / "config.json", lambda content: mutate(content, config))
    try:
        export(target, to_mutate.parent / "back", overwrite=True)
    except q.InputError as error:
        line = str(error)
        assert len(line) < 500
        return
    assert analyze(to_mutate.parent / "back") == 0
