"""Several processes as one run: `jax.distributed`, started by flags or by what a cluster says in the environment."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from qwen3llada_jax.errors import InputError, brief

from ..config.schema import DistributedConfig

GRACE = 10  # seconds that a process which failed waits for the others to fail as well


def start(config: DistributedConfig) -> None:
    """Join the other processes, before anything else touches a device.

    Raises:
        InputError: an address or numbers that make no sense, or processes that did not come together.
    """
    if config.coordinator_address is None and not (
        config.initialize == "always" or (config.initialize == "auto" and is_cluster(os.environ))
    ):
        return
    if config.coordinator_address is not None and config.process_id != 0:
        _wait_for(config.coordinator_address, config.timeout)
    # Processes on CPUs talk through gloo; other platforms have their own ways and do not read this.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            config.coordinator_address,
            config.num_processes,
            config.process_id,
            initialization_timeout=config.timeout,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"the processes did not come together ({brief(error, 200)}); check "
            "distributed.coordinator_address, num_processes and process_id, or set distributed.initialize: never for a "
            "single process"
        ) from error


def check() -> None:
    """Refuse several processes that share devices but not `jax.distributed`: they would not stop or save together.

    Raises:
        InputError: that is so, as on a TPU slice whose environment does not name its hosts.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"JAX sees {jax.process_count()} processes here, but this one has not joined them; "
            "set distributed.initialize: always"
        )


def _wait_for(address: str, seconds: int) -> None:
    """Wait until process 0 answers: where nobody does, `jax.distributed` would abort the process."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise InputError(f"distributed.coordinator_address {address!r} is not host:port, as in 10.0.0.1:1234")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > end:
                raise InputError(
                    f"nobody answers at distributed.coordinator_address {address} after {seconds} s ({error}); "
                    "start process 0 there, or fix the address"
                ) from error
        time.sleep(0.2)


def is_cluster(environment: Mapping[str, str]) -> bool:
    """Whether SLURM, Open MPI, a TPU pod or JAX's own variables say that there is more than one process."""
    several = any(environment.get(name, "1") not in ("", "1") for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"))
    pod = "," in environment.get("TPU_WORKER_HOSTNAMES", "")
    named = any(name in environment for name in ("JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS"))
    return several or pod or named


@contextmanager
def parted_on_error() -> Iterator[None]:
    """What is wrong on this process alone (a row of its own part of a stream, its disk) ends it soon: the others may be
    waiting for it in a computation, and it for them, five minutes long, at the end that `jax.distributed` has them meet
    at. Without it they end too."""
    try:
        yield
    except InputError:
        if jax.process_count() > 1:
            alone = threading.Timer(GRACE, os._exit, (2,))
            alone.daemon = True
            alone.start()
        raise


def gathered(value: Any) -> list[Any]:
    """What every process has to say, JSON-able, in their order; all must ask at the same moment."""
    if jax.process_count() == 1:
        return [json.loads(json.dumps(value))]
    said = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(said)))
    padded = multihost_utils.process_allgather(np.pad(said, (0, int(sizes.max()) - len(said))))
    return [json.loads(of_one[:size].tobytes()) for of_one, size in zip(padded, sizes, strict=True)]


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return jax.process_index() == 0
