"""libtpu on a machine without a TPU, where it is installed for its compiler (`train.plan`)."""

import importlib.util
import os
from pathlib import Path

import jax

# libtpu asks where it runs, even when it only compiles; without answers it complains over a page, or looks for a TPU's
# host for minutes.
ANSWERS = {
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a machine has one process at a time: right for chips, not for compiling
}


def leave_it_unless_there_is_a_tpu() -> None:
    """Keep JAX from starting libtpu where there is no TPU; call it before JAX starts.

    JAX starts whatever is installed, and without a TPU libtpu prints a page. Where anything speaks for a TPU, or the
    user chose the platforms, nothing is changed: taking the CPU instead would be worse than a page.
    """
    chosen = jax.config.values["jax_platforms"] or os.environ.get("JAX_FORCE_TPU_INIT")
    if chosen or importlib.util.find_spec("libtpu") is None or _may_have_tpu():
        return
    if importlib.util.find_spec("jax_plugins") is None:
        jax.config.update("jax_platforms", "cpu")
    else:  # a GPU's plugin, which a list of platforms would make compulsory: libtpu starts, and is quiet
        for name, value in ANSWERS.items():
            os.environ.setdefault(name, value)


def _may_have_tpu() -> bool:
    """Did JAX see a TPU on the PCI bus (where not, it sets TPU_SKIP_MDS_QUERY), or does anything else speak for one?"""
    always = {"TPU_SKIP_MDS_QUERY", "TPU_LIBRARY_PATH"}  # set by importing jax and libtpu
    named = any(name.startswith("TPU_") and name not in always for name in os.environ)
    return "TPU_SKIP_MDS_QUERY" not in os.environ or named or any(Path("/dev").glob("accel[0-9]*"))
