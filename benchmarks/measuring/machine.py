"""What readings were taken on, and with what: those of another machine or another code are no peers of theirs."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.peers.reading import ROOT
from train.runtime.versions import versions

_MEASURED = ("qwen3llada_jax", "train", "benchmarks/peers", "benchmarks/measuring")
_VECTORS = ("amx_tile", "avx512f", "avx2", "asimd")


def describe() -> dict[str, Any]:
    """The processor, versions, and `code`, a digest of all that is measured (`commit` says where to find it)."""
    facts, libraries = _processor(), dict(versions())
    names = facts.get("flags", facts.get("Features", "")).split()
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "vectors": [name for name in _VECTORS if name in names],
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "system": platform.platform(terse=True),
        "commit": libraries.pop("commit", None),
        "versions": libraries | {"torch": importlib.metadata.version("torch")},
        "code": _digest(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The facts that are not the same; the commit's name is none."""
    return [name for name in now if name != "commit" and before.get(name) != now[name]]


def sentence(machine: dict[str, Any]) -> str:
    kinds = ", ".join(machine["vectors"]) or "no wide vectors"
    tools = ", ".join(f"{name} {machine['versions'][name]}" for name in ("jax", "torch", "transformers"))
    commit = machine["commit"] or ""
    commit = f", commit {commit[:12]}{'-dirty' * commit.endswith('-dirty')}" if commit else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({kinds}), {machine['memory_gb']:.0f} GB, {machine['system']}; "
        f"{tools}{commit}"
    )


class Others:
    """How much of the machine others worked with since this was made; None where the system does not say.

    A share of 1 is all cores; what a hypervisor gave to other machines counts.
    """

    def __init__(self) -> None:
        self.before = (_busy_seconds(), _own_seconds(), time.perf_counter())

    def share(self) -> float | None:
        busy, own, now = _busy_seconds(), _own_seconds(), time.perf_counter()
        if busy is None or self.before[0] is None:
            return None
        of_others = busy - self.before[0] - (own - self.before[1])
        return max(0.0, of_others / ((now - self.before[2]) * (os.cpu_count() or 1)))


def _busy_seconds() -> float | None:
    place = Path("/proc/stat")
    if not place.exists():
        return None
    user, nice, system, _, _, interrupts, soft, stolen = map(int, place.read_text().split()[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(x.ru_utime + x.ru_stime for x in used)


def _processor() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, where there is one."""
    place = Path("/proc/cpuinfo")
    if not place.exists():
        return {}
    lines = (line.partition(":") for line in place.read_text().split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _digest() -> str:
    files = sorted(file for folder in _MEASURED for file in (ROOT / folder).rglob("*.py"))
    found = hashlib.sha256()
    for file in files:
        found.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]
