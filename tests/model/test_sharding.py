"""Meshes and where arrays lie."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

import qwen3llada_jax as q
from qwen3llada_jax import sharding
from qwen3llada_jax.model import model


@pytest.fixture(scope="module")
def network():
    config = q.ModelConfig(64, 32, 48, 2, 4, 2, 8, mask_token_id=63, initializer_range=0.2)
    return q.Qwen3LLaDA(config, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)])
def test_every_mesh_gives_the_same_logits_and_samples(network, sizes):
    tokens = np.arange(8 * 6).reshape(8, 6)
    settings = q.SamplerConfig(gen_length=8, block_length=4, steps=4)
    alone, written = network(tokens), q.generate(network, tokens, settings).answers()
    mesh = q.make_mesh(*sizes)
    graphdef, params = nnx.split(network, nnx.Param)
    _, shapes, roles = model.abstract(network.config)
    placed = jax.device_put(nnx.to_pure_dict(params), sharding.shardings(roles, shapes, mesh))
    with jax.set_mesh(mesh):
        spread = nnx.merge(graphdef, placed)
        np.testing.assert_allclose(jax.jit(lambda m, t: m(t))(spread, tokens), alone, atol=2e-5)
        assert q.generate(spread, tokens, settings).answers() == written


def test_specs_follow_the_rules():
    assert sharding.spec(("layers", "heads", "head_dim", "embed")) == P(None, "tensor", None, "fsdp")
    assert sharding.spec(("batch", "length", "act_embed")) == P(("data", "fsdp"), None, None)
    with pytest.raises(ValueError, match="same mesh axis twice"):
        sharding.spec(("heads", "mlp"))


def test_meshes_that_do_not_fit_are_refused():
    assert dict(q.make_mesh().shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert dict(q.make_mesh(2, -1, 2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    for sizes in ((3, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1)):
        with pytest.raises(q.InputError, match="mesh"):
            q.make_mesh(*sizes)


def test_all_indivisible_dimensions_are_listed(network):
    config = q.ModelConfig(63, 30, 48, 2, 4, 2, 8)
    _, shapes, roles = model.abstract(config)
    with pytest.raises(q.InputError) as caught:
        sharding.shardings(roles, shapes, q.make_mesh(1, 4, 2))
    for part in ("vocab 63 by 2 (tensor) (of embed_tokens, ", "embed 30 by 4 (fsdp) (of embed", "smaller mesh sizes"):
        assert part in str(caught.value)


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((2, 3))
    assert sharding.constrain(x, "batch", "length") is x


def test_compiler_options_are_those_of_the_platform(monkeypatch):
    def asked(platform: str, dtype: str = "float32", size: int = 1) -> dict[str, str]:
        devices = np.array([types.SimpleNamespace(platform=platform)] * size)
        return sharding.compiler_options(types.SimpleNamespace(devices=devices, size=size), dtype)

    monkeypatch.setenv("XLA_FLAGS", "")
    assert all(name.startswith("xla_tpu_") for name in asked("tpu"))
    assert asked("cpu") == {"xla_backend_optimization_level": "1"}
    assert asked("tpu", "bfloat16", 4) == asked("tpu")
    assert asked("cpu") == asked("cpu", "bfloat16") == asked("cpu", size=4)
    assert asked("gpu") == asked("cpu", "bfloat16", 4) == {}
    monkeypatch.setenv(
        "XLA_FLAGS", "--xla_backend_optimization_level=3 --xla_tpu_prefer_async_allgather_to_allreduce=false"
    )
    assert asked("cpu") == {}
    assert "xla_tpu_prefer_async_allgather_to_allreduce" not in asked("tpu")
    assert asked("tpu")


def fake_gpus(*slices: int) -> list[types.SimpleNamespace]:
    numbers = [number for number, size in enumerate(slices) for _ in range(size)]
    return [
        types.SimpleNamespace(id=i, platform="gpu", device_kind="any", process_index=number, slice_index=number)
        for i, number in enumerate(numbers)
    ]


@pytest.mark.parametrize("sizes", [(2, 4, 1), (4, 1, 2), (1, 8, 1), (1, 2, 4), (1, 1, 8)])
def test_several_slices_split_the_outermost_axis_that_they_can(sizes):
    """Within `fsdp` and `tensor` as much as possible is near."""
    places = np.vectorize(lambda device: device.slice_index)(sharding._arranged(list(sizes), fake_gpus(4, 4)))
    outermost = next(axis for axis, size in enumerate(sizes) if size % 2 == 0)
    assert places.shape == sizes
    for number, half in enumerate(np.split(places, 2, axis=outermost)):
        assert (half == number).all()


def test_slices_that_no_axis_can_be_split_over_are_refused():
    for slices, sizes in (((4, 4, 4), (2, 2, 3)), ((3, 3), (1, 3, 2))):
        assert sharding._arranged(list(sizes), fake_gpus(*slices)).shape == sizes
    with pytest.raises(q.InputError, match="slices"):
        sharding._arranged([1, 6, 1], fake_gpus(4, 2))


def test_a_mesh_axis_may_be_half_of_an_axis_of_the_torus():
    chips = [
        types.SimpleNamespace(id=16 * x + y, platform="tpu", device_kind="TPU v6 lite", coords=(x, y, 0),
                              core_on_chip=0, slice_index=0)
        for x in range(16) for y in range(16)
    ]  # fmt: skip
    mesh = sharding._arranged([2, 128, 1], chips)
    assert sorted(chip.id for chip in mesh.flat) == list(range(256))


def test_what_is_traced_for_one_cpu_is_known_by_the_mesh_in_use():
    assert sharding.is_one_cpu()  # no mesh
    for devices, is_one in ((1, True), (8, False)):
        with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:devices])):
            assert (sharding.is_one_cpu(), sharding.platform()) == (is_one, "cpu")
