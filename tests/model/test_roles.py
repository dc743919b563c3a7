"""Weights that no file but their declaration knows: experts and a router beside Qwen3's layers, and another family."""

import dataclasses
import json
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_optim import PLAIN, draw_like, follow, newton_schulz, settings
from torch_twins import logits_of, save_torch, torch_model
from transformers import Qwen2Config, Qwen2ForCausalLM

import qwen3llada_jax as q
from converters.analyze import analyze
from converters.from_hf import convert
from converters.to_hf import export
from qwen3llada_jax import sharding
from qwen3llada_jax.checkpoint import model_folder
from qwen3llada_jax.checkpoint.hf_names import flatten, hf_tensors, ours_of
from qwen3llada_jax.families import records
from qwen3llada_jax.model import model
from qwen3llada_jax.model.layers import Layers, new_weight
from qwen3llada_jax.model.roles import Role
from train import step as training
from train.monitor.model_flops import matmul_parameters
from train.optim import eight_bit, freeze, optimizer

E, F = 4, 24
NAMES = {
    "layers.experts_up": "model.layers.{}.mlp.experts.{}.up_proj.weight",
    "layers.router": "model.layers.{}.mlp.gate.weight",
    "layers.router_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
}


class WithExperts(Layers):
    """Each token goes to two of the experts that a router chooses."""

    def __init__(self, config, *, rngs, dtype="float32"):
        super().__init__(config, rngs=rngs, dtype=dtype)
        n, D = config.num_hidden_layers, config.hidden_size
        up = Role("matrix", ("mlp",), ("embed",), stacked=("layers", "experts"), active=2)
        router = Role("matrix", ("experts",), ("embed",), stacked=("layers",))
        self.experts_up = new_weight(rngs, dtype, (n, E, F, D), up, 0.1)
        self.router = new_weight(rngs, dtype, (n, E, D), router, 0.1)
        self.router_bias = new_weight(rngs, dtype, (n, E), Role("bias", ("experts",), stacked=("layers",)), 0.1)


@pytest.fixture
def config(monkeypatch):
    record = dataclasses.replace(records.QWEN3, names={**records.QWEN3.names, **NAMES})
    monkeypatch.setitem(records.FAMILIES, "qwen3", record)
    monkeypatch.setattr(model, "Layers", WithExperts)
    monkeypatch.setitem(sharding.RULES, "experts", None)  # where a new axis lies is said there
    return q.ModelConfig(64, 32, 48, 2, 4, 2, 16, mask_token_id=63)


def updated(config, name, gradients, **more):
    """(parameters before, after the updates, the optimizer's state), flat."""
    _, shapes, roles = model.abstract(config)
    params = draw_like(shapes, 0)
    tx = optimizer.optimizer(settings(**PLAIN | {"optim.name": name} | more), 4, roles)
    seen, state = follow(tx, params, [draw_like(shapes, i + 1, size) for i, size in enumerate(gradients)])
    return flatten(params), flatten(seen[-1]), state


def test_decay_takes_experts_and_router_and_leaves_their_bias(config):
    before, after, _ = updated(config, "adamw", [0.0])
    for name, factor in (("experts_up", 0.995), ("router", 0.995), ("router_bias", 1.0)):
        np.testing.assert_allclose(after[f"layers.{name}"], factor * before[f"layers.{name}"], rtol=1e-6)


def test_muon_takes_each_expert_as_one_matrix(config):
    before, after, _ = updated(config, "muon", [1.0])
    gradient = flatten(draw_like(model.abstract(config)[1], 1, 1.0))
    places = [("layers.experts_up", at) for at in product(range(2), range(E))] + [
        ("layers.router", (i,)) for i in (0, 1)
    ]
    for name, at in places:  # Nesterov's first moment is a multiple of the first gradient
        turned = newton_schulz(gradient[name][at].astype(np.float64))
        expected = before[name][at] - 1e-2 * (0.2 * np.sqrt(max(turned.shape)) * turned + 0.5 * before[name][at])
        np.testing.assert_allclose(after[name][at], expected, atol=2e-5, err_msg=f"{name} {at}")
    bias = np.sign(gradient["layers.router_bias"])  # AdamW's first update, without decay
    np.testing.assert_allclose(after["layers.router_bias"], before["layers.router_bias"] - 1e-2 * bias, rtol=1e-4)


def test_adafactor_clips_each_expert_by_itself(config):
    """One expert's second gradient is a hundred times its first: its update alone is clipped to an RMS of 1."""
    _, shapes, roles = model.abstract(config)
    gradient = draw_like(shapes, 0, 1.0)
    loud = jax.tree.map(np.copy, gradient)
    loud["layers"]["experts_up"][1, 2] *= 100
    tx = optimizer.rule(settings(**{"optim.name": "adafactor"}).optim, roles)
    update = jax.jit(tx.update)
    _, state = update(gradient, tx.init(gradient), gradient)
    updates, _ = update(loud, state, gradient)
    np.testing.assert_allclose(np.abs(updates["layers"]["experts_up"]), 1, rtol=1e-3)
    np.testing.assert_allclose(np.abs(updates["layers"]["router"]), 1, rtol=1e-3)


def test_moments_of_experts_in_8_bits_lie_like_them(config):
    _, _, roles = model.abstract(config)
    tx = optimizer.optimizer(settings(**{"optim.name": "adamw8bit"}), 4, roles)
    shapes, shardings = training.state_shardings(config, tx, sharding.make_mesh(1, 4, 2))
    mu = next(s for s in jax.tree.leaves(shapes["opt"], is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu")).mu
    assert isinstance(mu, eight_bit.Moment)
    assert mu.codes["layers"]["experts_up"].dtype == mu.codes["layers"]["router"].dtype == jnp.int8
    assert isinstance(mu.scales["layers"]["router_bias"], optax.MaskedNode)
    assert shardings["params"]["layers"]["experts_up"].spec == jax.P(None, None, "tensor", "fsdp")


def test_a_token_is_multiplied_with_its_experts_and_the_whole_router(config):
    dense = 2 * (2 * 4 * 16 * 32 + 2 * 2 * 16 * 32 + 3 * 48 * 32) + 64 * 32
    assert matmul_parameters(config) == dense + 2 * (2 * F * 32 + E * 32)
    assert matmul_parameters(dataclasses.replace(config, tie_word_embeddings=True)) == matmul_parameters(config)


def test_experts_are_frozen_by_layer_and_by_name(config):
    _, shapes, roles = model.abstract(config)
    marks = flatten(freeze.frozen(shapes, roles, ["layers.1.experts_*", "layers.router"]))
    found = {name: np.asarray(mark).tolist() for name, mark in marks.items() if np.any(mark)}
    assert found == {"layers.experts_up": [False, True], "layers.router": True}
    before, after, _ = updated(config, "adamw", [1.0], **{"training.freeze": '["layers.1.experts_*"]'})
    same = (before["layers.experts_up"] == after["layers.experts_up"]).all(axis=(1, 2, 3))
    assert same.tolist() == [False, True]


def test_names_of_stacked_axes_go_both_ways(config):
    _, shapes, roles = model.abstract(config)
    seen = set()
    for name, leaf in flatten(shapes).items():
        role = flatten(roles)[name]
        assert config.family.names[name].count("{}") == len(role.stacked), name
        parts = hf_tensors(name, leaf.shape, role, config.family.names)
        assert len(parts) == np.prod(leaf.shape[: len(role.stacked)])
        assert all(ours_of(hf, config.family.names) == (name, part.at) for hf, part in parts.items())
        seen |= set(parts)
    assert {f"model.layers.{i}.mlp.experts.{e}.up_proj.weight" for i in (0, 1) for e in range(E)} <= seen
    assert ours_of("model.layers.1.mlp.experts.3.up_proj.weight", config.family.names) == ("layers.experts_up", (1, 3))
    assert ours_of("model.layers.1.mlp.strange.weight", config.family.names)[0] is None


def test_experts_are_imported_compared_and_exported(config, tmp_path, capsys):
    src = save_torch(torch_model(3), tmp_path / "hf")
    tensors = load_file(src / "model.safetensors")
    for i in range(3):
        tensors[NAMES["layers.router"].format(i)] = torch.randn(E, 48)
        tensors[NAMES["layers.router_bias"].format(i)] = torch.randn(E)
        tensors |= {NAMES["layers.experts_up"].format(i, e): torch.randn(F, 48) for e in range(E)}
    save_file(tensors, src / "model.safetensors", metadata={"format": "pt"})
    read = convert(str(src), tmp_path / "ours", dtype=None, mask_token_id="7")
    ours = flatten(model_folder.load_params(tmp_path / "ours", read))["layers.experts_up"]
    for i, e in product(range(3), range(E)):
        np.testing.assert_array_equal(ours[i, e], tensors[NAMES["layers.experts_up"].format(i, e)])
    assert analyze(src, tmp_path / "ours") == 0
    assert "layers.experts_up[2, 3]" in capsys.readouterr().out
    export(tmp_path / "ours", tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


@pytest.mark.slow
def test_a_record_is_all_that_a_family_of_the_same_parts_needs(monkeypatch, tmp_path):
    """No norms of queries and keys, and biases on q, k and v that no key of its config.json tells of."""
    torch.manual_seed(0)
    values = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, rms_norm_eps=1e-5)  # fmt: skip
    theirs = Qwen2ForCausalLM._from_config(Qwen2Config(**values), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    read = records.QWEN3.read
    record = records.Family(
        name="Mine", model_type="mine", architectures=("Mine",), names=records.QWEN3.names, biases=("q", "k", "v"),
        read=lambda source: read(source) | {"attention_bias": True, "head_dim": 8}, write=records.QWEN3.write,
    )  # fmt: skip
    folder = save_torch(theirs, tmp_path / "hf")
    source = json.loads((folder / "config.json").read_text()) | {"model_type": "mine", "architectures": ["Mine"]}
    (folder / "config.json").write_text(json.dumps(source))
    with pytest.raises(q.InputError, match="model_type is 'mine'; models of these can be read: qwen3, qwen2, "):
        q.load(folder)
    monkeypatch.setitem(records.FAMILIES, "mine", record)
    tokens = np.arange(14).reshape(2, 7) * 5
    expected = logits_of(theirs, tokens, np.ones((2, 7, 7), bool))
    np.testing.assert_allclose(q.load(folder)(tokens), expected, atol=2e-5)
