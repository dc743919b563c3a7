"""Attention behind one function, and every quirk of the kernels that compute it.

softmax(q kᵀ / √H) v with grouped query heads, logits and softmax in float32.

| implementation | where | masks                                                                              |
|----------------|-------|------------------------------------------------------------------------------------|
| xla            | any   | all                                                                                |
| cudnn          | GPU   | all; none at all is its fast path; needs bfloat16 or float16                       |
| splash         | TPU   | all; blocks nobody sees are skipped; needs lengths and head sizes of 128·n         |
| splash_interpret| any  | the same kernel interpreted, for tests                                             |
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qwen3llada_jax import sharding
from qwen3llada_jax.errors import InputError
from qwen3llada_jax.model import coordinates, masks
from qwen3llada_jax.model.coordinates import Coordinates, Tiles
from qwen3llada_jax.model.dense_attention import attention_with_own, dense_attention
from qwen3llada_jax.model.masks import Mask

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash", "splash_interpret")


def attention(
    q: Float[Array, "B L N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Mask | Coordinates | Tiles | Bool[Array, "R L S"] | None = None,
    implementation: str = "auto",
) -> Float[Array, "B L N H"]:
    """Attend from every query to the keys its mask allows.

    A query that may see nothing (padding) gets a finite, meaningless value.

    Args:
        mask: a rule, coordinates, or a dense array with R = B or 1, True where a query may attend; None: no mask. Tiles
            are for `xla`.
        implementation: see the module's table; `auto` picks by platform and shape.

    Raises:
        InputError: an implementation that is unknown or cannot do these shapes.
    """
    if isinstance(mask, Mask):
        mask = masks.coordinates_of(mask, q.shape[1])
    if isinstance(mask, Coordinates) and mask.sees_everything:
        mask = None
    if isinstance(mask, Tiles):
        return _in_runs(q, k, v, mask)
    if mask is not None and not isinstance(mask, Coordinates) and mask.dtype != bool:
        raise InputError(f"a mask must be bool, True where a query may attend, not {mask.dtype}")
    match choose(implementation, q.dtype, q.shape[1], q.shape[3]):
        case "xla":
            if isinstance(mask, Coordinates) and mask.runs:
                return _in_runs(q, k, v, coordinates.tiles(mask))
            return dense_attention(q, k, v, _dense(mask, q.shape[1]))
        case "cudnn":
            return _cudnn(q, k, v, _dense(mask, q.shape[1]))
        case kind:
            constant, mask = _constant_rule(mask)
            # The compiler cannot split a kernel of our own: each device runs it on its rows and heads.
            heads, rows = ("batch", "length", "act_heads", "head_dim"), jax.tree.map(_rows_of, mask)
            kernel = functools.partial(_splash, constant=constant, interpret=kind == "splash_interpret")
            return sharding.per_device(kernel, (heads, heads, heads, rows), heads)(q, k, v, mask)


def choose(implementation: str, dtype: jnp.dtype, length: int, head_dim: int) -> str:
    """The implementation that will run; `auto` resolved for the mesh in use, else for the default backend.

    Raises:
        InputError: an unknown name, or an implementation that this platform or shape has not.
    """
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"attention {implementation!r} is unknown; choose one of {', '.join(IMPLEMENTATIONS)}")
    platform = sharding.platform()
    if implementation == "cudnn" and (platform != "gpu" or dtype not in (jnp.bfloat16, jnp.float16)):
        raise InputError(f"attention 'cudnn' needs a GPU and bfloat16, not {platform} and {dtype}; use 'auto' or 'xla'")
    if implementation == "splash" and platform != "tpu":
        raise InputError(f"attention 'splash' needs a TPU, not {platform}; use 'auto' or 'xla'")
    if implementation.startswith("splash") and length % 128:
        raise InputError(
            f"attention 'splash' needs a length that is a multiple of 128, not {length}; use 'auto' or 'xla'"
        )
    if implementation != "auto":
        return implementation
    if platform == "gpu" and dtype in (jnp.bfloat16, jnp.float16) and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    if platform == "tpu" and length % 128 == 0 and head_dim % 128 == 0:
        return "splash"
    return "xla"


def _dense(mask: Coordinates | Array | None, length: int) -> Array | None:
    return coordinates.dense(mask, length) if isinstance(mask, Coordinates) else mask


def _rows_of(array: Array) -> tuple[str, ...]:
    """Logical axes of a mask's array: one entry a row, or one for all rows."""
    return ("batch",) if array.shape[0] > 1 else ()


def _in_runs(q: Array, k: Array, v: Array, tiles: Tiles) -> Array:
    """Each run of queries with the keys that it may see, and no others."""
    found = []
    for run, allowed, own in zip(tiles.runs, tiles.allowed, tiles.own, strict=True):
        here = slice(run.begin, run.end)
        keys, values = (coordinates.stretches(x, run.keys) if run.keys else x[:, :0] for x in (k, v))
        if run.own is None:
            found.append(dense_attention(q[:, here], keys, values, allowed))
        else:
            near = k[:, here], v[:, here], own
            found.append(attention_with_own(q[:, here], *near, keys, values, allowed, run.own))
    return jnp.concatenate(found, axis=1)


def _cudnn(q: Array, k: Array, v: Array, allowed: Array | None) -> Array:
    if allowed is not None:  # cuDNN wants the batch spelled out and one head to broadcast over
        allowed = jnp.broadcast_to(allowed, (q.shape[0], *allowed.shape[1:]))[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=allowed, implementation="cudnn")


def _constant_rule(mask: Coordinates | Array | None) -> tuple[np.ndarray | None, Coordinates | Array | None]:
    """The block rule [L, L] where it is the same for all rows and known while compiling; and what else there is."""
    if not isinstance(mask, Coordinates):
        return None, mask
    mask = dataclasses.replace(mask, position=None)
    blocks = dataclasses.replace(mask, segment=None)
    if any(not isinstance(x, np.ndarray) or x.shape[0] > 1 for x in jax.tree.leaves(blocks)):
        return None, mask
    rule = coordinates.sees(blocks, blocks)
    return (None, mask) if rule is None else (np.asarray(rule)[0], Coordinates(segment=mask.segment))


def _splash(
    q: Array, k: Array, v: Array, mask: Coordinates | Array | None, *, constant: np.ndarray | None, interpret: bool
) -> Array:
    B, L, N, H = q.shape
    K = k.shape[2]
    if k.shape[1] != L:
        raise InputError(f"attention 'splash' needs as many keys as queries, not {k.shape[1]} and {L}; use 'xla'")
    row_rules, segment_ids = _rules_and_segments(mask, B, L)

    def one_row(q, k, v, segment_ids, row_rule):  # noqa: ANN001, ANN202 - q [K G L H], k and v [K L H]
        kernel = _splash_kernel(constant if row_rule is None else row_rule, N // K, L, interpret)
        segments = None if segment_ids is None else _splash_library().SegmentIds(q=segment_ids, kv=segment_ids)
        return jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(q, k, v)

    q = (q * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)  # splash does not scale by itself
    out = jax.vmap(one_row)(q, k.swapaxes(1, 2), v.swapaxes(1, 2), segment_ids, row_rules)  # B K G L H
    return out.transpose(0, 3, 1, 2, 4).reshape(B, L, N, H)


def _rules_and_segments(mask: Coordinates | Array | None, B: int, L: int) -> tuple[Array | None, Array | None]:
    """Who sees whom in each row [B L L], and segments [B L]; None where nothing is hidden."""
    rule: Any = mask
    segments = None
    if isinstance(mask, Coordinates):
        blocks, segments = dataclasses.replace(mask, segment=None), mask.segment
        rule = coordinates.sees(blocks, blocks)
    return (
        None if rule is None else jnp.broadcast_to(rule, (B, L, L)),
        None if segments is None else jnp.broadcast_to(segments, (B, L)).astype(jnp.int32),
    )


def _splash_kernel(rule: Array | np.ndarray | None, group: int, L: int, interpret: bool):  # noqa: ANN202
    """The kernel for the `group` query heads that share one key head."""
    splash = _splash_library()
    block = next(size for size in (512, 256, 128) if L % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    if rule is None:
        heads = splash.MultiHeadMask([splash.FullMask((L, L))] * group)
    elif isinstance(rule, np.ndarray):
        heads = splash.MultiHeadMask([splash.NumpyMask(rule)] * group)
    else:
        heads = jnp.broadcast_to(rule, (group, L, L))
    kernel = splash.make_splash_mqa(heads, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    # The kernel asks this flag with `if`, but has made it an array, which is a tracer inside jit.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=isinstance(heads, jax.Array))
    return kernel


@functools.cache
def _splash_library():  # noqa: ANN202
    """Splash attention's module, imported when first used: it takes most of a second."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention
