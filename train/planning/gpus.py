"""NVIDIA cards to plan for: what XLA's compiler for GPUs must know of a card, and the vendor's figures.

The compiler needs no GPU: it is told of one, `target`, in the words of its `GpuTargetConfigProto`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One card, as its driver and its data sheet describe it.

    Attributes:
        memory: bytes that the driver leaves to programs.
        bandwidth: bytes/s of main memory.
        nvlink: bytes/s that it sends one way to the others of its host, whichever they are.
    """

    name: str
    memory: int
    bandwidth: float
    nvlink: float


# SXM cards. Published: 3.35 and 4.8 TB/s of memory, NVLink 900 GB/s both ways together. Of 80 GB programs get 79.1 GiB,
# of 141 GB 139.8: what CUDA reports.
CARDS = {
    "h100": Card("NVIDIA H100 80GB HBM3", int(79.1 * 2**30), 3350e9, 450e9),
    "h200": Card("NVIDIA H200", int(139.8 * 2**30), 4800e9, 450e9),
}
MOST = 8  # of a host; how hosts are joined differs from place to place

# Of compute capability 9.0: what both cards' drivers say.
_HOPPER = """
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  device_memory_size: {memory}
  memory_bandwidth: {bandwidth:.0f}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: {cuda} }}
device_description_str: "{name}"
"""


def target(card: Card, cuda: int) -> str:
    """The card in the compiler's words, under this version of CUDA."""
    return _HOPPER.format(memory=card.memory, bandwidth=card.bandwidth, name=card.name, cuda=cuda)
