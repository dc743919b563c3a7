"""Attention by matmuls: values and gradients against PyTorch's in float64, whole, by stretches and in two parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from qwen3llada_jax.model import dense_attention as ours

B, L, S, N, K, H = 2, 12, 20, 6, 2, 5


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    return [2 * draw.standard_normal(shape, dtype=np.float32) for shape in shapes]


def random_rule(seed: int, rows: int, length: int, keys: int) -> np.ndarray:
    """Who sees whom, with a query that sees one key and one that sees all."""
    allowed = np.random.default_rng(seed).random((rows, length, keys)) < 0.4
    allowed[:, 0] = False
    allowed[:, :, 3] = True
    allowed[:, 1] = True
    return allowed


def by_torch(q, k, v, allowed, of_out, dtype=torch.float64):
    """(output, gradients in q, k and v): keys repeated for their heads, softmax, nothing clever."""
    q, k, v = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (q, k, v))
    group = q.shape[2] // k.shape[2]
    logits = torch.einsum("blnh,bsnh->bnls", q, k.repeat_interleave(group, 2)) / q.shape[3] ** 0.5
    if allowed is not None:
        logits = logits.masked_fill(~torch.tensor(allowed)[:, None], -torch.inf)
    out = torch.einsum("bnls,bsnh->blnh", logits.softmax(-1), v.repeat_interleave(group, 2))
    out.backward(torch.tensor(of_out, dtype=dtype))
    return [x.detach().double().numpy() for x in (out, q.grad, k.grad, v.grad)]


def value_and_gradients(attend, of_out, *inputs):
    """Compiled as one, as in a training step: XLA then moves what stands beside a matmul into it."""

    @jax.jit
    def both(of_out, *inputs):
        out, pull = jax.vjp(attend, *inputs)
        return [out, *pull(of_out)]

    return both(jnp.asarray(of_out), *map(jnp.asarray, inputs))


@pytest.mark.parametrize("rows", [None, 1, B])
@pytest.mark.parametrize(
    "at_once",
    [
        *[None, N * L * S, N // K * L * S, N // K * 5 * S, 1],  # all, a row, a head, 5 queries (not a divisor), 1
        pytest.param(B * N * S * 5, id="several devices"),  # all rows and heads
    ],
)
def test_values_and_gradients_equal_torchs(rows, at_once, monkeypatch, request):
    if "several" in request.node.name:
        monkeypatch.setattr(ours.sharding, "is_one_cpu", lambda: False)
        monkeypatch.setattr(ours, "_TOO_MANY", B * N * L * S - 1)
        monkeypatch.setattr(ours, "_AT_ONCE", at_once)
    elif at_once is not None:
        monkeypatch.setattr(ours, "_IN_CACHE", at_once)
        monkeypatch.setattr(ours, "_ROWS_OF_A_PART", 1)
    q, k, v, of_out = arrays(0, (B, L, N, H), (B, S, K, H), (B, S, K, H), (B, L, N, H))
    allowed = None if rows is None else random_rule(1, rows, L, S)
    found = value_and_gradients(lambda q, k, v: ours.dense_attention(q, k, v, allowed), of_out, q, k, v)
    for one, other in zip(found, by_torch(q, k, v, allowed, of_out), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("far", [0, 7])
@pytest.mark.parametrize("rule", ["all", "some"])
def test_own_part_and_far_keys_are_one_softmax(far, rule):
    size, parts = 4, L // 4
    q, near_k, near_v, of_out = arrays(2, (B, L, N, H), (B, L, K, H), (B, L, K, H), (B, L, N, H))
    far_k, far_v = arrays(3, (B, far, K, H), (B, far, K, H))
    own = None if rule == "all" else random_rule(4, 1, parts * size, size).reshape(1, parts, size, size)
    allowed = None if rule == "all" or not far else random_rule(5, B, L, far)
    if allowed is not None:
        allowed[0, 2] = False  # this query sees keys of its own part alone
    whole = np.zeros((B, L, L + far), bool)
    for p in range(parts):
        here = slice(p * size, (p + 1) * size)
        whole[:, here, here] = True if own is None else own[0, p]
    whole[:, :, L:] = True if allowed is None else allowed

    def attend(q, near_k, near_v, far_k, far_v):
        return ours.attention_with_own(q, near_k, near_v, own, far_k, far_v, allowed, size)

    out, of_q, *of_parts = value_and_gradients(attend, of_out, q, near_k, near_v, far_k, far_v)
    found = [out, of_q, *(np.concatenate([of_parts[i], of_parts[i + 2]], axis=1) for i in (0, 1))]
    keys, values = np.concatenate([near_k, far_k], axis=1), np.concatenate([near_v, far_v], axis=1)
    for one, other in zip(found, by_torch(q, keys, values, whole, of_out), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_a_query_that_sees_nothing_breaks_no_gradient():
    q, k, v, of_out = arrays(6, (B, L, N, H), (B, S, K, H), (B, S, K, H), (B, L, N, H))
    allowed = random_rule(7, B, L, S)
    allowed[:, 2] = False
    found = value_and_gradients(lambda q, k, v: ours.dense_attention(q, k, v, allowed), of_out, q, k, v)
    assert all(np.isfinite(x).all() for x in found)


def test_large_logits_neither_overflow_nor_lose_digits():
    q, k, v, of_out = arrays(8, (B, L, N, H), (B, S, K, H), (B, S, K, H), (B, L, N, H))
    q[:, :, 0] *= 1e4
    found = value_and_gradients(lambda q, k, v: ours.dense_attention(q, k, v, None), of_out, q, k, v)
    expected = by_torch(q, k, v, None, of_out)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    assert all(np.isfinite(x).all() for x in found)


def test_bfloat16_errs_no_more_than_torch_does():
    inputs = arrays(9, (B, L, N, H), (B, S, K, H), (B, S, K, H), (B, L, N, H))
    q, k, v, of_out = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in inputs)
    half = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    found = value_and_gradients(lambda q, k, v: ours.dense_attention(q, k, v, None), jnp.bfloat16(of_out), *half)
    exact, torchs = by_torch(q, k, v, None, of_out), by_torch(q, k, v, None, of_out, torch.bfloat16)
    for one, expected, other in zip(found, exact, torchs, strict=True):
        assert one.dtype == jnp.bfloat16
        assert np.abs(np.float64(one) - expected).mean() < 1.1 * np.abs(other - expected).mean()


@pytest.mark.parametrize("one_cpu", [False, True])
@pytest.mark.parametrize("too_many", [False, True])
def test_of_a_long_row_nothing_of_length_times_length_is_held(too_many, one_cpu, monkeypatch):
    """Neither in the forward pass nor in the backward one; of a short row, one such array is kept."""
    length, at_once = 64, 16
    monkeypatch.setattr(ours.sharding, "is_one_cpu", lambda: one_cpu)
    if too_many:
        monkeypatch.setattr(ours, "_IN_CACHE", 1)
        monkeypatch.setattr(ours, "_ROWS_OF_A_PART", N // K * at_once)
        monkeypatch.setattr(ours, "_TOO_MANY", 1)
        monkeypatch.setattr(ours, "_AT_ONCE", N * at_once * length)
    q, k, v = arrays(10, (1, length, N, H), (1, length, K, H), (1, length, K, H))

    def loss(q, k, v):
        return ours.dense_attention(q, k, v, None).sum()

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (v.aval.size for v in equation.outvars)
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from sizes(inner)

    largest = max(sizes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(q, k, v).jaxpr))
    assert largest == ((N // K if one_cpu else N) * at_once if too_many else N * length) * length
