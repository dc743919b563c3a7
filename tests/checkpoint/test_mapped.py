"""Weights that lie in their file as JAX wants them are mapped: the same numbers, as safe as those that are read."""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from conftest import refuses
from flax import nnx
from safetensors.numpy import save_file
from torch_twins import save_torch, torch_model

import qwen3llada_jax as q
from qwen3llada_jax.checkpoint import hf_import
from qwen3llada_jax.io.safetensors_folder import mapped, stored_tensors
from qwen3llada_jax.model.config import ModelConfig, read_config_json

TOKENS = np.arange(10).reshape(2, 5)


def shifted(source: Path, target: Path, by: int) -> Path:
    """The same folder, the data of its file at `by` bytes behind a multiple of 64: headers may end with spaces."""
    shutil.copytree(source, target)
    raw = (target / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + size].rstrip()
    header += b" " * ((by - 8 - len(header)) % 64)
    (target / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + size :])
    return target


@pytest.fixture(scope="module", params=["bfloat16", "float32"])
def folders(request, tmp_path_factory) -> dict[str, Path]:
    """One model with a head of its own, aligned and not."""
    place = tmp_path_factory.mktemp("mapped")
    import torch

    model = torch_model(5, vocab_size=224, hidden_size=64, tie_word_embeddings=False)
    source = save_torch(model.to(getattr(torch, request.param)), place / "hf")
    return {"aligned": shifted(source, place / "aligned", 0), "unaligned": shifted(source, place / "unaligned", 8)}


def in_file(array: jax.Array, folder: Path) -> bool:
    """Whether an array's memory is that of the folder's file."""
    at = array.unsafe_buffer_pointer()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(x, 16) for x in line.split()[0].split("-"))
        if begin <= at < end:
            return line.endswith(str(folder / "model.safetensors"))
    return False


def test_embedding_and_head_are_mapped_where_they_are_aligned(folders):
    model = q.load(folders["aligned"])
    assert in_file(model.embed_tokens[...], folders["aligned"])
    assert in_file(model.lm_head[...], folders["aligned"])
    assert not in_file(model.layers.q_proj[...], folders["aligned"])
    assert not in_file(q.load(folders["unaligned"]).embed_tokens[...], folders["unaligned"])
    other = {"bfloat16": "float32", "float32": "bfloat16"}[str(model.embed_tokens.dtype)]
    assert not in_file(q.load(folders["aligned"], other).embed_tokens[...], folders["aligned"])
    assert in_file(q.load(folders["aligned"], str(model.embed_tokens.dtype)).head, folders["aligned"])


def test_never_onto_a_mesh(folders, monkeypatch):
    monkeypatch.setattr(hf_import, "mapped_stack", lambda *_: pytest.fail("mapped"))
    model = q.load(folders["aligned"], mesh=q.make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_array_equal(model.head, q.load(folders["unaligned"], mesh=q.make_mesh(data=8)).head)


def test_mapped_and_read_write_the_same(folders):
    aligned, unaligned = q.load(folders["aligned"]), q.load(folders["unaligned"])
    np.testing.assert_array_equal(aligned(TOKENS), unaligned(TOKENS))
    config = q.SamplerConfig(gen_length=8, block_length=4, steps=8, mask_token_id=223)
    answers = [q.generate(model, [[1, 2, 3], [4]], config).answers() for model in (aligned, unaligned)]
    assert answers[0] == answers[1]


def test_what_is_done_with_a_mapped_model_stays_in_the_process(folders):
    """A training step writes into the memory that it was given."""
    file = folders["aligned"] / "model.safetensors"
    before, expected = file.read_bytes(), q.load(folders["unaligned"])(TOKENS)
    graphdef, state = nnx.split(q.load(folders["aligned"]), nnx.Param)
    params = nnx.to_pure_dict(state)
    del state
    changed = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    assert np.isfinite(np.asarray(nnx.merge(graphdef, changed)(TOKENS))).all()
    assert file.read_bytes() == before
    np.testing.assert_array_equal(q.load(folders["aligned"])(TOKENS), expected)


def test_a_mapped_file_may_be_replaced_or_removed(folders, tmp_path):
    folder = shifted(folders["aligned"], tmp_path / "own", 0)
    model = q.load(folder)
    before = np.asarray(model(TOKENS))
    (tmp_path / "other").write_bytes(b"\0" * 1000)
    os.replace(tmp_path / "other", folder / "model.safetensors")
    np.testing.assert_array_equal(model(TOKENS), before)
    shutil.rmtree(folder)
    np.testing.assert_array_equal(model(TOKENS), before)


def test_a_file_that_is_cut_short_is_refused(folders, tmp_path):
    folder = shifted(folders["aligned"], tmp_path / "own", 0)
    tensors = stored_tensors(folder)
    file, last = folder / "model.safetensors", max(tensors.values(), key=lambda tensor: tensor.offset)
    file.write_bytes(file.read_bytes()[:-1])
    refuses(lambda: q.load(folder), "model.safetensors", "truncated")
    refuses(lambda: mapped(last), "model.safetensors", "ends early; download it again")  # cut after the header was read
    file.unlink()
    refuses(lambda: mapped(last), "model.safetensors", "cannot be read (No such file")


def test_a_tensor_is_mapped_byte_for_byte(folders):
    stacks = hf_import.plan(folders["aligned"], ModelConfig.from_hf(read_config_json(folders["aligned"])))
    head = next(stack for stack in stacks if stack.name == "lm_head")
    (tensor,) = head.parts.values()
    raw = tensor.file.read_bytes()[tensor.offset :][: int(np.prod(tensor.shape)) * tensor.dtype.itemsize]
    assert hf_import.mapped_stack(head, None).tobytes() == raw
    odd = replace(head, parts={"lm_head.weight": replace(tensor, offset=tensor.offset + 32)})
    assert hf_import.mapped_stack(odd, None) is None
    assert all(hf_import.mapped_stack(stack, None) is None for stack in stacks if len(stack.parts) > 1)


_CHILD = """
import re, sys
from pathlib import Path
import jax, numpy as np
import qwen3llada_jax as q
def now(what): return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
jax.block_until_ready(q.load(sys.argv[2]).hidden(np.arange(8)[None]))  # a small one: what is imported and compiled
before = now("RssAnon"), now("VmRSS")
model = q.load(sys.argv[1])
print(now("RssAnon") - before[0])
jax.block_until_ready(model.hidden(np.arange(8)[None]))
print(now("VmHWM") - before[1])
print(sum(x.nbytes for x in jax.tree.leaves(model)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("folders", ["bfloat16"], indirect=True)
def test_memory_of_an_opened_model(folders, tmp_path):
    """What is mapped is none of the process's own; at its peak it has gained the parameters, and little more."""
    V, D = 100_000, 512
    small = json.loads((folders["aligned"] / "config.json").read_text())
    config = small | {"vocab_size": V, "hidden_size": D, "tie_word_embeddings": True, "num_hidden_layers": 8,
                      "intermediate_size": 1024, "max_position_embeddings": 64}  # fmt: skip
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    shapes = _shapes(folders["aligned"] / "model.safetensors", small, config)
    save_file({k: np.ones(v, ml_dtypes.bfloat16) for k, v in shapes.items()}, tmp_path / "hf" / "model.safetensors")
    for by in (0, 8):
        large = shifted(tmp_path / "hf", tmp_path / str(by), by)
        command = [sys.executable, "-c", _CHILD, str(large), str(folders["unaligned"])]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        own, peak, parameters = map(int, done.stdout.split())
        table = 2 * V * D
        assert parameters > table
        assert own < parameters - table + 20e6 if by == 0 else own > 0.9 * parameters
        assert peak < 1.1 * parameters + 60e6


def _shapes(file: Path, small: dict, config: dict) -> dict[str, tuple[int, ...]]:
    """The tensors of a model of another config: sizes that `small` names, layer for layer."""
    K, N, H = config["num_key_value_heads"], config["num_attention_heads"], config["head_dim"]
    D, F = config["hidden_size"], config["intermediate_size"]
    sizes = {
        "embed_tokens": (config["vocab_size"], D), "q_proj": (N * H, D), "k_proj": (K * H, D), "v_proj": (K * H, D),
        "o_proj": (D, N * H), "q_norm": (H,), "k_norm": (H,), "gate_proj": (F, D), "up_proj": (F, D),
        "down_proj": (D, F), "input_layernorm": (D,), "post_attention_layernorm": (D,), "norm": (D,),
    }  # fmt: skip
    names = [name for name in stored_tensors(file.parent) if name != "lm_head.weight"]
    every = {re.sub(r"\.\d+\.", f".{n}.", name) for name in names for n in range(config["num_hidden_layers"])}
    return {name: sizes[name.split(".")[-2]] for name in every}
