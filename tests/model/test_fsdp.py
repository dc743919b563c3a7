"""How weights travel over `fsdp`: sums of gradients in shares of any size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding

import qwen3llada_jax as q
from qwen3llada_jax import fsdp, sharding
from qwen3llada_jax.model import model


@pytest.mark.parametrize("rows", [1, 512, 513, 1088, 32_000, 151_936])
def test_tables_are_cut_at_powers_of_two(rows):
    sizes = fsdp._powers_of_two(rows)
    assert sizes == sorted(sizes, reverse=True)
    assert all(size >= 512 and size & (size - 1) == 0 for size in sizes)
    assert 0 <= sum(sizes) - rows < 512
    assert sum(sizes[:-1]) < rows


def whole_numbers(*shape: int) -> np.ndarray:
    """Small ones: their products and sums are exact in float32, in any order."""
    return np.random.default_rng(len(shape)).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("axes", [("mlp", "embed"), ("embed", "mlp")])
@pytest.mark.parametrize("share", [5, 8])
def test_a_products_gradients_are_exact_on_any_mesh(sizes, axes, share):
    """Shares of 5 columns are scattered by hand, those of 8 by the compiler."""
    mesh = q.make_mesh(*sizes)
    of = {"embed": share * sizes[1], "mlp": 12}
    x, weight, pull = whole_numbers(16, of[axes[1]]), whole_numbers(*map(of.get, axes)), whole_numbers(16, of[axes[0]])

    def loss(weight, x):
        gathered = fsdp.gather(weight, axes, x.dtype)
        return (fsdp.product(x, gathered, axes) * pull).sum()

    placed = [jax.device_put(a, NamedSharding(mesh, sharding.spec(s))) for a, s in ((weight, axes), (x, ("batch",)))]
    with jax.set_mesh(mesh):
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        assert ("shard_map" in str(step.trace(*placed).jaxpr)) == (share % 8 > 0)
        total, (of_weight, of_x) = step(*placed)
    assert total == (x @ weight.T * pull).sum()
    np.testing.assert_array_equal(of_weight, pull.T @ x)
    np.testing.assert_array_equal(of_x, pull @ weight)
    assert of_weight.sharding.is_equivalent_to(placed[0].sharding, 2)


@pytest.mark.parametrize("columns", [12, 32])
def test_a_tables_gradient_is_exact_in_shares_of_any_size(columns):
    mesh, parts = q.make_mesh(2, 4, 1), whole_numbers(8, 700, columns)

    def work(x):
        return fsdp.reduce_gradient(x[0], ("fsdp",), ("data", "fsdp"))

    with jax.set_mesh(mesh):
        total = jax.jit(sharding.per_device(work, ("batch",), ("vocab", "embed")))(parts)
    np.testing.assert_array_equal(total, parts.sum(axis=0))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_model_of_odd_shares_learns_as_on_one_device(remat):
    """Hidden size 40 over fsdp 4: 10 columns each."""
    config = q.ModelConfig(64, 40, 48, 2, 4, 2, 8, mask_token_id=63, initializer_range=0.2)
    network = q.Qwen3LLaDA(config, rngs=nnx.Rngs(0), runtime=model.Runtime("float32", "xla", remat))
    graphdef, params = nnx.split(network, nnx.Param)
    params, tokens = nnx.to_pure_dict(params), np.arange(8 * 6).reshape(8, 6)

    def gradient(params):
        return jax.grad(lambda p: (nnx.merge(graphdef, p).hidden(jnp.asarray(tokens)) ** 3).sum())(params)

    alone = jax.jit(gradient)(params)
    _, shapes, roles = model.abstract(config)
    for sizes in ((2, 4, 1), (1, 4, 2)):
        mesh = q.make_mesh(*sizes)
        with jax.set_mesh(mesh):
            spread = jax.jit(gradient)(jax.device_put(params, sharding.shardings(roles, shapes, mesh)))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5 * abs(y).max()), spread, alone)
