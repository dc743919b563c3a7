"""A plan as a value, and as a page of text."""

import dataclasses
from dataclasses import dataclass

from .hardware import Chip
from .hlo_analysis import Purpose
from .jaxpr_analysis import Traced


@dataclass(frozen=True)
class Memory:
    """Bytes of one device during a step; None is what the compiler did not say.

    Attributes:
        parameters, moments: of the state; part of `arguments`.
        activations: what the layers keep for the backward pass; part of `temporaries`. Over `tensor` it is at most
            this: some are split there too.
        arguments: state and batch.
        new_outputs: results that do not lie in the place of an argument.
        temporaries: activations, gathered weights, gradients, logits: all that lives only within the step, at its peak.
        program: the machine code.
    """

    parameters: int
    moments: int
    activations: int
    arguments: int | None = None
    new_outputs: int | None = None
    temporaries: int | None = None
    program: int | None = None
    total: int | None = None

    def summed(self) -> "Memory":
        parts = (self.arguments, self.new_outputs, self.temporaries, self.program)
        return dataclasses.replace(self, total=sum(part or 0 for part in parts))


@dataclass(frozen=True)
class Plan:
    """What `train.plan` found. Bytes are of one device, FLOPs of all devices together, both of one update.

    Attributes:
        rows: of one forward pass over all devices; an update has `micro_batches` of them.
        refusal: why the step does not fit; where those are the compiler's words, nothing below `ideal_flops` is known.
        peak_flops: FLOP/s of a device.
        ideal_flops: what the model asks for, as the metric `mfu` of a run counts it (`monitor/model_flops.py`).
        traced_flops: matrix products of the traced program.
        compiled_flops: those of the compiled one; more than traced means that devices repeat each other's work.
        kernels: how often kernels run that the compiler did not write (splash attention's, cuDNN's), by name.
        hbm_bytes: an estimate of what moves between main memory and cores.
        least_sent: what FSDP sends at least (`plan.least_sent`); None where its rule says nothing.
    """

    topology: str
    chip: Chip | None
    devices: int
    devices_per_chip: int
    peak_flops: float | None
    mesh: dict[str, int]
    parameters: int
    rows: int
    micro_batches: int
    length: int
    dtype: str
    remat: str
    attention: str
    memory: Memory
    ideal_flops: int
    other_lengths: tuple[int, ...] = ()
    refusal: str | None = None
    traced_flops: Traced | None = None
    compiled_flops: int | None = None
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    hbm_bytes: int | None = None
    collectives: tuple[Purpose, ...] = ()
    least_sent: float | None = None
    compile_seconds: float | None = None
    largest_batch: int | None = None

    @property
    def capacity(self) -> int | None:
        """Bytes of main memory of one device that JAX takes."""
        return None if self.chip is None else int(self.chip.hbm * self.chip.taken) // self.devices_per_chip

    @property
    def wire_bytes(self) -> float:
        return sum(one.wire_bytes for one in self.collectives)

    def seconds(self) -> dict[str, float] | None:
        """What one update takes at least, by what may hold it up; None without a chip's figures."""
        if self.chip is None or self.peak_flops is None or self.compiled_flops is None or self.hbm_bytes is None:
            return None
        return {
            "compute": self.compiled_flops / (self.devices * self.peak_flops),
            "main memory": self.hbm_bytes * self.devices_per_chip / self.chip.hbm_bandwidth,
            "interconnect": self.wire_bytes * self.devices_per_chip / self.chip.ici,
        }

    def utilization(self, seconds: float) -> float:
        """Ideal FLOPs over what the chips could have done in that time (MFU)."""
        assert self.peak_flops is not None
        return self.ideal_flops / (seconds * self.peak_flops * self.devices)


def as_text(plan: Plan) -> str:
    """The plan as a page."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    per = "chip" if plan.chip is not None and plan.devices_per_chip == 1 else "device"
    per = "GPU" if plan.chip is not None and "NVIDIA" in plan.chip.name else per
    others = ", ".join(map(str, plan.other_lengths))
    shorter = f" (the longest; batches of shorter rows are {others} long)" if others else ""
    lines = [
        f"{plan.topology}: {plan.devices} devices{'' if plan.chip is None else f' ({plan.chip.name})'}, mesh {mesh}",
        f"{plan.parameters / 1e9:.2f} B parameters, {plan.rows} rows × {plan.length} tokens a forward pass{shorter}, "
        f"{plan.micro_batches} of them an update; {plan.dtype}, remat {plan.remat}, attention {plan.attention}",
        "",
        _verdict(plan, per),
        *_memory(plan, per),
    ]
    if plan.compiled_flops is not None:
        lines += ["", *_collectives(plan, per), "", *_flops(plan), *_kernels(plan), "", *_time(plan)]
    return "\n".join(lines)


def _verdict(plan: Plan, per: str) -> str:
    if plan.refusal is not None:
        return f"DOES NOT FIT: {plan.refusal}"
    if plan.capacity is None:
        return f"compiled in {plan.compile_seconds:.0f} s (simulated devices: nothing to fit into)"
    share = (plan.memory.total or 0) / plan.capacity
    taken = "of a" if plan.chip is None or plan.chip.taken == 1 else "that JAX takes of a"
    return f"FITS: {share:.0%} of the {gib(plan.capacity)} {taken} {per} (compiled in {plan.compile_seconds:.0f} s)"


def _memory(plan: Plan, per: str) -> list[str]:
    m = plan.memory
    rows = [("parameters", m.parameters), ("optimizer's moments", m.moments)]
    if m.arguments is not None:
        rows.append(("batch, and padding of the state", m.arguments - m.parameters - m.moments))
        rows.append(("results in new places", m.new_outputs or 0))
        rows.append(("temporaries at their peak", m.temporaries or 0))
    rows.append((f"  activations kept (remat {plan.remat})", m.activations))
    if m.arguments is not None:
        rows.append(("program", m.program or 0))
    if m.total is not None:
        rows.append(("together", m.total))
    lines = [f"{f'memory of a {per}':<44}"] + [f"  {name:<42}{gib(size):>12}" for name, size in rows]
    if m.temporaries and plan.capacity:
        room = (plan.capacity - (m.total or 0) + m.temporaries) / m.temporaries
        ways = plan.mesh["data"] * plan.mesh["fsdp"]
        lines.append(
            f"  if temporaries grow with the rows, about {int(room * plan.rows / ways) * ways} rows a forward pass fit"
        )
    return lines


def _collectives(plan: Plan, per: str) -> list[str]:
    lines = [f"{f'collectives of an update, by {per}':<44}{'times':>8}{'arrays':>12}{'sent':>12}"]
    for one in plan.collectives:
        lines.append(f"  {one.name:<42}{round(one.times):>8}{gib(one.bytes):>12}{gib(one.wire_bytes):>12}")
    if not plan.collectives:
        lines.append("  none")
    if plan.least_sent:
        share = f"{plan.wire_bytes / plan.least_sent:.3f} of it is sent"
        lines.append(f"  {'each weight gathered twice, scattered once':<58}{gib(plan.least_sent):>12}  {share}")
    return lines


def _flops(plan: Plan) -> list[str]:
    least, traced = plan.ideal_flops, plan.traced_flops
    assert traced is not None
    assert plan.compiled_flops is not None
    rows = [
        ("model: 6·N·tokens + 12·layers·N·H·pairs", least),
        ("in the step; head on half of the tokens", traced.total - traced.recomputed),
        ("recomputed (remat)", traced.recomputed),
        ("in the compiled program", plan.compiled_flops),
        ("  but for what is recomputed", plan.compiled_flops - traced.recomputed),
    ]
    return ["FLOPs of an update (matrix products)".ljust(52) + "of the model's".rjust(14)] + [
        f"  {name:<42}{_tera(value):>12}{value / least:>8.3f}" for name, value in rows
    ]


def _kernels(plan: Plan) -> list[str]:
    if not plan.kernels:
        return []
    lines = [f"{'kernels of an update, a device':<44}{'times':>8}"]
    return ["", *lines, *(f"  {name:<42}{round(times):>8}" for name, times in plan.kernels.items())]


def _time(plan: Plan) -> list[str]:
    seconds = plan.seconds()
    if seconds is None or plan.chip is None:
        return ["no expected time: simulated devices"]
    chip, tokens = plan.chip, plan.rows * plan.micro_batches * plan.length
    figures = {
        "compute": f"{(plan.peak_flops or 0) / 1e12:.0f} TFLOP/s a device",
        "main memory": f"{chip.hbm_bandwidth / 1e9:.0f} GB/s, {gib(plan.hbm_bytes or 0)} moved",
        "interconnect": f"{chip.ici / 1e9:.0f} GB/s one way over all links",
    }
    lines = ["seconds of an update, at the vendor's peak figures"]
    lines += [f"  {name:<42}{value:>12.4f}  {figures[name]}" for name, value in seconds.items()]
    best, worst = max(seconds.values()), sum(seconds.values())
    slowest = max(seconds, key=lambda name: seconds[name])
    lines.append(
        f"  bound by {slowest}: at least {best:.3f} s ({tokens / best:,.0f} tokens/s, utilization at most "
        f"{plan.utilization(best):.0%});\n  nothing overlapped: {worst:.3f} s ({plan.utilization(worst):.0%}). "
        "Real chips reach less than their peak."
    )
    return lines


def gib(size: float) -> str:
    """Bytes as text."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}"
    return f"{size / 1024:,.1f} KiB"


def _tera(value: float) -> str:
    return f"{value / 1e12:,.1f} T"
