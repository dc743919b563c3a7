"""Where every array lives: a mesh of (data, fsdp, tensor) and one table from logical axes to mesh axes.

The model names the axes of its weights and activations; this file alone knows the mesh. Partitioning is the
compiler's (GSPMD): nothing here moves data.
"""

import collections
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from qwen3llada_jax import arguments
from qwen3llada_jax.errors import InputError, listed

MESH_AXES = ("data", "fsdp", "tensor")
FSDP = "fsdp"  # the axis over which weights are stored in shares, and gathered where they are used

# logical axis → mesh axes. Weights' `embed` is split over fsdp; activations' `act_embed` is not.
RULES: dict[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "length": None,
    "act_embed": None,
    "act_heads": "tensor",
    "act_mlp": "tensor",
    "act_vocab": "tensor",
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "norm": None,
}

# Where `fsdp` spans several axes of the torus, the TPU compiler spells reduce-scatters (and, of small arrays or over
# three axes, gathers) as all-reduces, twice the bytes, unless told otherwise. Chips with SparseCores (v5p, v6e, TPU7x)
# then let those do it beside the matrix products, as TPU7x does by default; the others take one ring.
_TPU_OPTIONS = {
    "xla_tpu_enable_sparse_core_collective_offload_nd_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": "true",
    "xla_tpu_enable_sparse_core_collective_offload_all_gather": "true",
    "xla_tpu_prefer_async_allgather_to_allreduce": "true",
}
# LLVM's later passes take half of the time to compile a step and gain nothing where products are a library's and loops
# are vectorized before. They gain a fifth where factors are converted.
_CPU_OPTIONS = {"xla_backend_optimization_level": "1"}


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over `devices` (default: all); one size may be -1, "whatever is left".

    Raises:
        InputError: sizes whose product is not the number of devices, or that do not fit several slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [arguments.whole(f"mesh size {axis}", x) for axis, x in zip(MESH_AXES, (data, fsdp, tensor), strict=True)]
    count = len(devices)
    if sizes.count(-1) > 1 or any(s == 0 or s < -1 for s in sizes):
        raise InputError(
            f"mesh {dict(zip(MESH_AXES, sizes, strict=True))}: sizes are above 0, and one at most may be -1"
        )
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise InputError(
            f"mesh {_product(sizes)} does not fit {count} device(s); choose sizes whose product is {count}"
        )
    return Mesh(_arranged(sizes, devices), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _product(sizes: list[int]) -> str:
    return " × ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, sizes, strict=True))


def _arranged(sizes: list[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices such that neighbors on the mesh are near; several slices (pods, GPU hosts) split `data` first.

    `jax.make_mesh` refuses several slices, and sizes that split an axis of the torus.
    """
    slices = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    between, left = [], len(slices)
    for size in sizes:
        between.append(math.gcd(size, left))
        left //= between[-1]
    if left > 1 or len(set(slices.values())) > 1:
        raise InputError(
            f"mesh {_product(sizes)} does not fit slices of {', '.join(map(str, slices.values()))} devices; "
            f"choose slices of one size and data as a multiple of their number, {len(slices)}"
        )
    within = [size // parts for size, parts in zip(sizes, between, strict=True)]
    if len(slices) == 1:
        return mesh_utils.create_device_mesh(within, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(within, between, devices, allow_split_physical_axes=True)


def platform() -> str:
    """What is traced here runs on cpu, gpu or tpu: the mesh's in use, else the default backend."""
    mesh = jax.sharding.get_abstract_mesh()
    return jax.default_backend() if mesh.empty or mesh.abstract_device is None else mesh.abstract_device.platform


def is_one_cpu() -> bool:
    """Whether what is traced here runs on a CPU, and no mesh in use has several."""
    mesh = jax.sharding.get_abstract_mesh()
    return platform() == "cpu" and (mesh.empty or mesh.size == 1)


def compiler_options(mesh: Mesh, dtype: str) -> dict[str, str]:
    """For `jax.jit(compiler_options=…)` of a training step in `dtype`.

    On TPUs weights travel by them as gathers and their gradients as reduce-scatters; on CPUs a step is compiled sooner,
    and takes as long. Those that XLA_FLAGS names are the user's.
    """
    converts = dtype != "float32" and mesh.size > 1  # see `bfloat16`
    options = {"tpu": _TPU_OPTIONS, "cpu": {} if converts else _CPU_OPTIONS}
    of_user = os.environ.get("XLA_FLAGS", "")
    asked = options.get(mesh.devices.flat[0].platform, {})
    return {name: value for name, value in asked.items() if name not in of_user}


def spec(axes: tuple[str, ...]) -> P:
    """PartitionSpec of an array with these logical axes."""
    parts = [RULES[axis] for axis in axes]
    used = [name for part in parts if part for name in ((part,) if isinstance(part, str) else part)]
    if len(used) != len(set(used)):
        raise ValueError(f"axes {axes} map to the same mesh axis twice: {parts}")
    return P(*parts)


def mesh_axes(axis: str) -> tuple[str, ...]:
    """The mesh axes that one logical axis is split over, on the mesh in use; those of size 1 split nothing."""
    part, mesh = RULES[axis], jax.sharding.get_abstract_mesh()
    names = () if part is None else (part,) if isinstance(part, str) else part
    return tuple(name for name in names if not mesh.empty and mesh.shape[name] > 1)


def canonical_spec(axes: tuple[str, ...]) -> P:
    """`spec` as a compiled program spells it: axes that split something, and nothing behind the last of them."""
    parts = [names[0] if len(names) == 1 else names or None for names in map(mesh_axes, axes)]
    while parts and parts[-1] is None:
        parts.pop()
    return P(*parts)


def ways(axis: str) -> int:
    """Into how many parts a logical axis is split on the mesh in use."""
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in mesh_axes(axis))


def check_rows(rows: int) -> None:
    """Refuse rows that the mesh in use does not share out evenly.

    Raises:
        InputError: saying of what their number must be a multiple.
    """
    if rows % ways("batch"):
        fits = -(-rows // ways("batch")) * ways("batch")
        raise InputError(
            f"{rows} rows do not divide over the mesh's data × fsdp = {ways('batch')}; give {fits}: repeat one, and "
            "leave out what it gives"
        )


def constrain(x: Array, *axes: str) -> Array:
    """Tell the compiler how an activation is laid out; nothing outside a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))


def per_device(function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
    """`function` on each device's part of its inputs, which are laid out by logical axes; as it is outside a mesh.

    Args:
        inputs: logical axes of each argument, or a tree of them; () for one that every device has whole.
        outputs: the same for the result.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return function
    return jax.shard_map(function, in_specs=_specs(inputs), out_specs=_specs(outputs), check_vma=False)


def _specs(axes: Any) -> Any:
    return jax.tree.map(spec, axes, is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(a, str) for a in x))


def shardings(roles: Mapping[str, Any], shapes: Mapping[str, Any], mesh: Mesh) -> dict[str, Any]:
    """A NamedSharding for each weight of a tree, from its logical axes.

    Args:
        roles: tree of what each weight is (`roles.Role`).
        shapes: the same tree of arrays or ShapeDtypeStructs.

    Raises:
        InputError: dimensions that the mesh does not divide, all of them listed.
    """
    problems: dict[str, list[str]] = {}  # what is not divided → the weights that have it

    def one(path: Any, role: Any, leaf: Any) -> NamedSharding:
        sharding = NamedSharding(mesh, spec(role.axes))
        for name, size, part in zip(role.axes, leaf.shape, sharding.spec, strict=True):
            parts = () if part is None else (part,) if isinstance(part, str) else part
            ways = math.prod(mesh.shape[p] for p in parts)
            if size % ways:
                weight = jax.tree_util.keystr(path, simple=True, separator=".")
                problems.setdefault(f"{name} {size} by {ways} ({'×'.join(parts)})", []).append(weight)
        return sharding

    tree = jax.tree_util.tree_map_with_path(one, roles, shapes)
    if problems:
        what = [f"{axis} (of {listed(sorted(set(weights)), most=3)})" for axis, weights in sorted(problems.items())]
        raise InputError(f"the mesh does not divide {listed(what, '; ')}; choose smaller mesh sizes")
    return tree
