"""The loss over a large vocabulary: its values, its gradients, its memory, on one device and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3llada_jax import sharding
from qwen3llada_jax.cross_entropy import cross_entropy
from qwen3llada_jax.model.head import positions_at_once

B, L, D, V = 8, 12, 16, 48


@pytest.fixture(scope="module")
def arrays():
    draw = np.random.default_rng(0)
    return (
        draw.normal(size=(B, L, D)).astype(np.float32),
        draw.normal(size=(V, D)).astype(np.float32),
        draw.integers(0, V, (B, L)).astype(np.int32),
        draw.random((B, L)).astype(np.float32),
        draw.random((B, L)) < 0.4,
    )


def reference(arrays, smoothing):
    """PyTorch's sum, cross-entropies and gradients."""
    hidden, head, targets, weight, where = arrays
    h, e = torch.tensor(hidden, requires_grad=True), torch.tensor(head, requires_grad=True)
    rows = (h @ e.T).flatten(0, 1), torch.tensor(targets).flatten().long()
    smooth = torch.nn.functional.cross_entropy(*rows, reduction="none", label_smoothing=smoothing)
    total = (smooth * torch.tensor(weight * where).flatten()).sum()
    total.backward()
    plain = torch.nn.functional.cross_entropy(*rows, reduction="none").detach().numpy().reshape(B, L)
    return total.item(), np.where(where, plain, 0), h.grad.numpy(), e.grad.numpy()


def value_and_gradients(arrays, **options):
    def loss(hidden, head):
        return cross_entropy(hidden, head, *arrays[2:], **options)

    (total, ce), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*arrays[:2])
    return total, ce, *gradients


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-6)
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        np.testing.assert_allclose(mine, other, atol=4e-6)


@pytest.mark.parametrize("chunk", [None, 1, 7, 96])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_torch_with_its_gradients(arrays, chunk, smoothing):
    """Whatever the slices; under smoothing the sum is smoothed, the reported cross-entropy is not."""
    expected = reference(arrays, smoothing)
    assert_close(value_and_gradients(arrays, chunk=chunk, smoothing=smoothing), expected)
    total, ce = cross_entropy(*arrays, chunk=chunk, smoothing=smoothing)
    assert_close((total, ce), expected[:2])


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (1, 4, 2), (2, 2, 2)])
def test_equals_torch_on_every_mesh(arrays, sizes):
    """Rows over data and fsdp, the vocabulary over tensor, the hidden size over fsdp."""
    mesh = sharding.make_mesh(*sizes)
    rows, table = P(("data", "fsdp")), sharding.spec(("vocab", "embed"))
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in zip(arrays, (rows, table, rows, rows, rows), strict=True)
    ]
    with jax.set_mesh(mesh):
        got = value_and_gradients(placed, chunk=5, smoothing=0.1)
    assert_close(got, reference(arrays, 0.1))
    assert got[3].sharding.is_equivalent_to(NamedSharding(mesh, table), 2)


def test_positions_outside_are_never_looked_at(arrays):
    """Not even when their hidden states are NaN; and nothing to look at is no error."""
    hidden, head, targets, weight, where = arrays
    poisoned = np.where(where[..., None], hidden, np.nan)
    assert_close(value_and_gradients((poisoned, *arrays[1:]), chunk=5), reference(arrays, 0.0))
    nothing = np.zeros_like(where)
    got = value_and_gradients((hidden, head, targets, weight, nothing))
    assert all(not np.asarray(x).any() for x in got)


def test_logits_stay_small():
    """No array of B · L · V elements in the compiled program, forward or backward."""
    B, L, D, V = 4, 512, 8, 5000
    shape = jax.ShapeDtypeStruct
    ids, mask = shape((B, L), jnp.int32), shape((B, L), jnp.bool_)

    def loss(hidden, head, targets, weight, where):
        return cross_entropy(hidden, head, targets, weight, where, chunk=32)[0]

    compiled = (
        jax.jit(jax.grad(loss, argnums=(0, 1)))
        .lower(shape((B, L, D), jnp.float32), shape((V, D), jnp.float32), ids, shape((B, L), jnp.float32), mask)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < B * L * V * 4 / 8


@pytest.mark.parametrize("positions", [1, 300, 4096, 32768])
@pytest.mark.parametrize("vocab", [100, 4096, 151_936, 1 << 30])
def test_positions_at_once_bounds_the_logits(positions, vocab):
    at_once = positions_at_once(positions, vocab)
    assert at_once >= 1
    assert at_once == 1 or at_once * vocab * 4 <= 512 << 20
