"""What a compiled program does, read off its text: collectives, their bytes, memory traffic, the arrays it holds.

XLA prints a loop's body once; everything here is multiplied by how often the loop runs, and branches of a conditional
by their shares, where they are given (`hlo_parser.executed`). The text is what `jax.stages.Compiled.as_text` gives; all
sizes are those of one device.
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from .hlo_parser import NO_SHARES, Computation, Operation, attribute, executed, parse

NO_TRIPS: Mapping[str, int] = MappingProxyType({})  # of loops whose data decide how often they go round
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_PALLAS = "tpu_custom_call"
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^{}]*)\})?")


class Collective(NamedTuple):
    """One collective of the program.

    Attributes:
        times: how often it runs in one call of the program, in the mean.
        bytes: of the whole array, once: what is gathered, reduced, scattered or exchanged in a group; for a permute
            what one device sends.
        group: devices that take part together.
        shape: type of its result, as printed.
        where: the computation it stands in; the TPU compiler names the loops into which it turned an all-gather
            or reduce-scatter `…windowed_dot_general_body_ag` and `…_rs`.
        source: the operation of the source program that it serves.
    """

    kind: str
    times: float
    bytes: int
    group: int
    shape: str
    where: str
    source: str

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends, once, by the best algorithm of a ring."""
        if self.kind == "collective-permute":
            return self.bytes
        share = (self.group - 1) / self.group
        return (2 if self.kind == "all-reduce" else 1) * share * self.bytes


class Traffic(NamedTuple):
    """How many collectives of a kind run in one call, and the bytes of their arrays together."""

    times: float
    bytes: float


def collectives(text: str, trip_counts: Mapping[str, int] = NO_TRIPS) -> dict[str, Traffic]:
    """Collectives by kind, loops multiplied; kinds that do not occur have no entry.

    Args:
        trip_counts: how often loops go round whose data decide it, by a word in the name of their source operation.

    Raises:
        ValueError: a loop that holds collectives and whose trips neither the text nor `trip_counts` tells.
    """
    total: dict[str, Traffic] = {}
    for one in find_collectives(text, trip_counts):
        count, size = total.get(one.kind, (0, 0))
        total[one.kind] = Traffic(count + one.times, size + one.times * one.bytes)
    return total


class Purpose(NamedTuple):
    """The collectives of one kind and purpose: count, bytes of their arrays, bytes that each device sends."""

    name: str
    times: float
    bytes: float
    wire_bytes: float


def by_purpose(
    text: str, trip_counts: Mapping[str, int] = NO_TRIPS, branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> list[Purpose]:
    """Collectives by kind; permutes that are a piecewise all-gather or reduce-scatter apart."""
    total: dict[str, Purpose] = {}
    for one in find_collectives(text, trip_counts, branch_shares):
        name = one.kind
        if "windowed_dot_general_body_ag" in one.where:
            name = "collective-permute (piecewise all-gather)"
        elif "windowed_dot_general_body_rs" in one.where:
            name = "collective-permute (piecewise reduce)"
        _, count, size, wire = total.get(name, (name, 0, 0, 0.0))
        total[name] = Purpose(name, count + one.times, size + one.times * one.bytes, wire + one.times * one.wire_bytes)
    return sorted(total.values(), key=lambda purpose: -purpose.wire_bytes)


def find_collectives(
    text: str, trip_counts: Mapping[str, int] = NO_TRIPS, branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> list[Collective]:
    """Every collective of a program, one entry for each place it stands in.

    Raises:
        ValueError: a loop that holds collectives and whose trips neither the text nor `trip_counts` tells.
    """
    computations, entry = parse(text)
    found: list[Collective] = []
    steps: list[tuple[str, Collective]] = []  # pieces of a collective that the TPU compiler overlaps with others
    started = set()
    for times, inside, op, _ in executed(computations, entry, trip_counts, branch_shares):
        kind = op.opcode.removesuffix("-start")
        if kind not in KINDS:
            continue
        if times is None:
            raise ValueError(f"how often {op.name} in {inside.name} runs cannot be told from the text")
        scatters = kind == "all-reduce" and "all-reduce-scatter" in inside.name  # how TPUs spell reduce-scatter
        whole, group = _array_bytes(op), _group(op.text)
        if kind == "reduce-scatter":
            whole *= group
        source = attribute(op.text, r'op_name="([^"]*)"') or ""
        one = Collective("reduce-scatter" if scatters else kind, times, whole, group, op.type, inside.name, source)
        channel = attribute(op.text, r"channel_id=(\d+)") or op.name
        if inside.name.startswith("async_collective_fusion") or "AsyncCollectiveDone" in inside.root.text:
            steps.append((channel, one))
        else:
            started.add(channel)
            found.append(one)
    for channel, one in steps:
        if channel not in started:
            started.add(channel)
            found.append(one)
    return found


def hbm_bytes(
    text: str, trip_counts: Mapping[str, int] = NO_TRIPS, branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> int:
    """An estimate of the bytes that one call moves between a device's main memory and its cores.

    The operands and results of every operation outside fusions, but for arrays that the compiler has placed in
    faster memory (a memory space in the layout); of an operand that is only sliced, the slice.

    Loops of which the text does not tell the trip count, count once.
    """
    computations, entry = parse(text)
    free = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
            "call-start", "after-all", "partition-id", "iota", "opt-barrier"}  # fmt: skip
    total: float = 0
    for times, inside, op, in_fusion in executed(computations, entry, trip_counts, branch_shares):
        if in_fusion or op.opcode in free or op.opcode.endswith(("-done", "-update")):
            continue
        body = computations.get(attribute(op.text, r"calls=%([\w.\-]+)") or "") if op.opcode == "fusion" else None
        moved = 0
        for number, operand in enumerate(op.operands):
            source = inside.operations.get(operand)
            moved += 0 if source is None else _read(source, number, op, body)
        if not op.opcode.endswith("-start"):
            moved += _written(op, body)
        total += (1 if times is None else times) * moved
    return round(total)


def matmul_flops(
    text: str, trip_counts: Mapping[str, int] = NO_TRIPS, branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> int:
    """FLOPs of the matrix products of one call on one device, loops multiplied; kernels are not seen, but for cuBLAS'.

    Raises:
        ValueError: as `collectives`, of a loop with matrix products.
    """
    computations, entry = parse(text)
    total: float = 0
    for times, inside, op, _ in executed(computations, entry, trip_counts, branch_shares):
        if op.opcode in ("dot", "convolution") or '"__cublas$' in op.text:
            left, right = (_dims(inside.operations[name].type) for name in op.operands[:2])
            flops = _convolution(op, left, right) if op.opcode == "convolution" else _dot(op, left)
            if times is None:
                raise ValueError(f"how often {op.name} in {inside.name} runs cannot be told from the text")
            total += times * flops
    return round(total)


def kernels(
    text: str, trip_counts: Mapping[str, int] = NO_TRIPS, branch_shares: Mapping[str, Sequence[float]] = NO_SHARES
) -> dict[str, float]:
    """How often each kernel runs in one call: Pallas' by their names, those of NVIDIA's libraries by their targets.

    Raises:
        ValueError: as `collectives`, of a loop with kernels.
    """
    computations, entry = parse(text)
    found: dict[str, float] = {}
    for times, inside, op, _ in executed(computations, entry, trip_counts, branch_shares):
        target = attribute(op.text, r'custom_call_target="([^"]*)"') or ""
        if op.opcode != "custom-call" or not (target == _PALLAS or target.startswith("__cu")):
            continue
        if times is None:
            raise ValueError(f"how often {op.name} in {inside.name} runs cannot be told from the text")
        name = op.name.rstrip("0123456789.") if target == _PALLAS else target
        found[name] = found.get(name, 0) + times
    return found


def arrays(text: str) -> set[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of every array that the program names, those inside fusions included."""
    return {(dtype, _shape(dims)) for dtype, dims, _ in _ARRAY.findall(text) if _bits(dtype)}


def _read(source: Operation, number: int, reader: Operation, body: Computation | None) -> int:
    """Bytes that `reader` takes of its operand `number`."""
    whole = _main_memory_bytes(source.type)
    if reader.opcode == "dynamic-slice":
        return min(whole, _bytes(reader.type))
    if reader.opcode == "dynamic-update-slice" and number == 0:
        return 0  # in place
    if body is None or not whole:
        return whole
    parameter = next(
        (o.name for o in body.operations.values() if o.opcode == "parameter" and o.text.startswith(f"{number})")), None
    )
    users = [o for o in body.operations.values() if parameter in o.operands]
    if users and all(o.opcode in ("dynamic-slice", "gather") for o in users):
        return min(whole, sum(_bytes(o.type) for o in users))
    if users and all(o.opcode == "dynamic-update-slice" and o.operands[0] == parameter for o in users):
        return 0
    return whole


def _written(op: Operation, body: Computation | None) -> int:
    whole = _main_memory_bytes(op.type)
    places = body if body is not None else Computation("", {op.name: op})
    updates = [o for o in places.operations.values() if o.opcode == "dynamic-update-slice"] if whole else []
    for update in updates:  # in place: only the slice is written
        new = places.operations.get(update.operands[1])
        if new is not None and _bytes(update.type) <= whole:
            whole += _bytes(new.type) - _bytes(update.type)
    return whole


def _dot(op: Operation, left: tuple[int, ...]) -> int:
    """A product of the compiler's or of cuBLAS."""
    named = attribute(op.text, r"lhs_contracting_dim(?:ension)?s\"?[=:][{\[]([\d,\"]*)[}\]]") or ""
    contracted = _shape(named.replace('"', ""))
    return 2 * math.prod(_dims(op.type)) * math.prod(left[d] for d in contracted)


def _convolution(op: Operation, left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """TPUs write matrix products as convolutions, batch dimensions as spatial ones: only taps inside count."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.text)
    assert labels is not None
    of_left, of_right, of_out = labels.groups()
    out = _dims(op.type)
    flops = 2 * out[of_out.index("b")] * out[of_out.index("f")] * right[of_right.index("i")]
    for number, axis in enumerate(sorted(c for c in of_out if c.isdigit())):
        setting = {name: value.split("x")[number] for name, value in re.findall(r"(\w+)=([\dx_\-]+)", _window(op.text))}
        n_in, n_out, taps = left[of_left.index(axis)], out[of_out.index(axis)], right[of_right.index(axis)]
        stride, spread, dilation = (int(setting.get(k, 1)) for k in ("stride", "lhs_dilate", "rhs_dilate"))
        low = int(setting.get("pad", "0_0").split("_")[0])
        place = np.arange(n_out)[:, None] * stride + np.arange(taps)[None] * dilation - low
        flops *= int(((place >= 0) & (place <= (n_in - 1) * spread) & (place % spread == 0)).sum())
    return flops // int(attribute(op.text, r"batch_group_count=(\d+)") or 1)


def _window(text: str) -> str:
    return attribute(text, r"window=\{([^}]*)\}") or ""


def _dims(kind: str) -> tuple[int, ...]:
    """Shape of the one array of a type."""
    found = _ARRAY.search(kind)
    assert found is not None
    return _shape(found[2])


def _bits(dtype: str) -> int:
    """Bits of an element; 0 for what is no array."""
    if dtype in _BITS:
        return _BITS[dtype]
    number = re.match(r"[suf](\d+)", dtype)
    return int(number[1]) if number else 0


def _shape(dims: str) -> tuple[int, ...]:
    return tuple(int(d) for d in dims.split(",") if d)


def _bytes(kind: str) -> int:
    """Bytes of an array or of all arrays of a tuple."""
    return sum(_bits(t) * math.prod(_shape(dims)) // 8 for t, dims, _ in _ARRAY.findall(kind))


def _main_memory_bytes(kind: str) -> int:
    """The same without arrays whose layout names a memory space, `S(n)`: those lie in faster memory."""
    return sum(
        _bits(t) * math.prod(_shape(dims)) // 8 for t, dims, layout in _ARRAY.findall(kind) if "S(" not in layout
    )


def _array_bytes(op: Operation) -> int:
    """Bytes of a collective's result; the type of a `-start` holds its operands too, and perhaps flags."""
    if not op.opcode.endswith("-start") or op.opcode == "all-reduce-start":
        return _bytes(op.type)
    sizes = [_bits(t) * math.prod(_shape(dims)) // 8 for t, dims, _ in _ARRAY.findall(op.type)]
    n = len(op.operands)
    return sum(sizes[n : 2 * n])


def _group(text: str) -> int:
    """Devices of one group: `{{0,1},{2,3}}`, `[groups,size]<=[…]` or axes of a mesh, `mesh['a'=2,'b'=8] {'b'}`.

    Between a mesh and its axes may stand the order of its devices, `, device_ids=([2,8]T(1,0))`.
    """
    if first := attribute(text, r"replica_groups=\{\{([\d,]+)\}"):
        return first.count(",") + 1
    if iota := attribute(text, r"replica_groups=\[([\d,]+)\]<="):
        return math.prod(_shape(iota)[1:])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)?\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        part = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(piece or sizes[name]) for name, piece in part)
    if pairs := attribute(text, r"source_target_pairs=\{(.*?)\}\}"):
        return pairs.count("{")
    raise ValueError(f"who takes part in this collective? {text[:200]}")
