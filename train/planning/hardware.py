"""Machines to plan for: TPU slices by their topology, hosts of GPUs, simulated CPU devices; the vendor's figures."""

import importlib.util
import os
import re
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from qwen3llada_jax.errors import InputError, listed
from qwen3llada_jax.process.libtpu import ANSWERS

from ..monitor.model_flops import peak_flops
from .gpus import CARDS, MOST, target


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip, but for FLOP/s, which stand in `monitor/model_flops.py`.

    Attributes:
        hbm: bytes of main memory.
        hbm_bandwidth: bytes/s.
        ici: bytes/s that all links together send one way (half of what is published as bidirectional).
        taken: the share of main memory that JAX takes.
    """

    name: str
    hbm: int
    hbm_bandwidth: float
    ici: float
    taken: float = 1.0


# By the name that the compiler gives a device. Published in Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p",
# "TPU v6e" and "TPU7x (Ironwood)" (docs.cloud.google.com/tpu/docs), read in November 2026. Interconnect: v4 2,400,
# v5e 1,600, v5p 4,800 and v6e 3,200 Gbit/s one way (the same pages' newer bidirectional 400, 1,200 and 800 GB/s,
# halved), TPU7x 1,200 GB/s bidirectional.
CHIPS = {
    "TPU v4": Chip("TPU v4", 32 << 30, 1200e9, 300e9),
    "TPU v5 lite": Chip("TPU v5e", 16 << 30, 819e9, 200e9),
    "TPU v5": Chip("TPU v5p", 95 << 30, 2765e9, 600e9),
    "TPU v6 lite": Chip("TPU v6e", 32 << 30, 1640e9, 400e9),
    "TPU7x": Chip("TPU7x", 192 << 30, 7380e9, 600e9),
}


@dataclass(frozen=True)
class Hardware:
    """Devices to compile for. `chip` and `flops` (FLOP/s of one device) are None for simulated ones."""

    topology: str
    devices: list[Any]
    chip: Chip | None
    flops: float | None = None
    devices_per_chip: int = 1


def hardware_of(topology: str) -> Hardware:
    """The devices of `v5e:4x4`, `v5p:4x4x4`, `v6e:16x16`, `tpu7x:2x2x1`, …, `h100:8` or `cpu:8`; call it before JAX
    starts.

    Raises:
        InputError: no such topology, or no compiler for it here.
    """
    kind, _, size = topology.partition(":")
    if kind == "cpu":
        if not size.isdigit() or int(size) < 1:
            raise InputError(f"--topology {topology}: simulated devices are cpu:N, as in cpu:8")
        return Hardware(topology, _cpus(int(size)), None)
    if kind in CARDS:
        return _gpus(topology, kind, size)
    if not re.fullmatch(r"(v\d+[a-z]*|tpu\w+):\d+(x\d+)*", topology):
        raise InputError(
            f"--topology {topology!r} is none: write a slice as in v5e:4x4, v5p:4x4x4, v6e:16x16, GPUs as in "
            f"{_listed_cards()}, or simulated devices as in cpu:8"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            f"--topology {topology} needs the TPU compiler: pip install 'jax[tpu]' (or plan on simulated devices, "
            "--topology cpu:8)"
        )
    for name, value in ANSWERS.items():
        os.environ.setdefault(name, value)
    jax.config.update("jax_platforms", "cpu")
    settings = {"chip_config_name": "megacore"} if kind == "v4" else {}  # one device a chip, as in practice
    try:
        devices: list[Any] = list(topologies.get_topology_desc(topology, platform="tpu", **settings).devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise InputError(
            f"--topology {topology}: the TPU compiler knows no such slice ({error}); examples are v5e:4x4, v5p:4x4x4, "
            "v6e:16x16"
        ) from error
    chip = CHIPS.get(devices[0].device_kind)
    if chip is None:
        raise InputError(f"--topology {topology}: no figures for {devices[0].device_kind!r}; known are v4 to tpu7x")
    return Hardware(
        topology, devices, chip, peak_flops(devices[0]), len(devices) // len({tuple(d.coords) for d in devices})
    )


def _listed_cards() -> str:
    return listed([f"{name}:{MOST}" for name in CARDS])


def _gpus(topology: str, kind: str, number: str) -> Hardware:
    """The GPUs of one host, to compile for: NVIDIA's plugin of JAX compiles without one.

    Raises:
        InputError: a number that a host does not have, or no plugin.
    """
    if number not in map(str, range(1, MOST + 1)):
        raise InputError(
            f"--topology {topology}: a plan is of one host, {kind}:1 to {kind}:{MOST}: how hosts are joined differs"
        )
    cuda = cuda_version()
    if cuda is None:
        raise InputError(
            f"--topology {topology} needs the compiler for GPUs, but no GPU: pip install 'jax[cuda13]' (or plan on "
            f"simulated devices, --topology cpu:{number})"
        )
    jax.config.update("jax_platforms", "cpu")
    card = CARDS[kind]
    found = topologies.get_topology_desc(platform="cuda", target_config=target(card, cuda), topology=f"1x1x{number}")
    asked = os.environ.get("XLA_CLIENT_MEM_FRACTION") or os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION")
    chip = Chip(card.name, card.memory, card.bandwidth, card.nvlink, float(asked or 0.75))  # JAX's own default
    return Hardware(topology, list(found.devices), chip, peak_flops(found.devices[0]))


def cuda_version() -> int | None:
    """The version of JAX's plugin for NVIDIA's GPUs; None where there is none."""
    if importlib.util.find_spec("jax_plugins") is None:
        return None
    return next((n for n in (13, 12) if importlib.util.find_spec(f"jax_plugins.xla_cuda{n}") is not None), None)


def _cpus(number: int) -> list[Any]:
    jax.config.update("jax_platforms", "cpu")
    try:
        jax.config.update("jax_num_cpu_devices", number)
    except RuntimeError:  # JAX has started: what it has must do
        if jax.device_count() < number:
            raise InputError(f"--topology cpu:{number}: JAX has started with {jax.device_count()} device(s)") from None
    return jax.devices()[:number]
