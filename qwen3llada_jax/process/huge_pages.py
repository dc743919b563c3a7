"""Huge pages for what XLA allocates on a CPU: a program starts itself anew with the C library told so.

Each training step takes a fresh buffer of about a gigabyte and gives it back. In pages of 4 KB the kernel is asked for
it a quarter of a million times a step, a tenth of the time or more. glibc (2.35 and later) asks for huge pages where it
is told to, and reads what it is told when a process starts: so this comes before anything else is imported.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from qwen3llada_jax.process.programs import IS_ONE

SWITCH = "QWEN3LLADA_HUGE_PAGES"
TUNABLE = "glibc.malloc.hugetlb"
_STATE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def start_anew() -> None:
    """Where this process is a program's and it helps, replace it by itself with huge pages. Nothing happens in anybody
    else's process."""
    if sys.executable and IS_ONE and is_wanted(os.environ) and is_had():
        os.environ.update(environment(os.environ))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_wanted(environment: Mapping[str, str]) -> bool:
    """Unless the switch says 0, or glibc has been told already, whatever it was."""
    return environment.get(SWITCH) != "0" and TUNABLE not in environment.get("GLIBC_TUNABLES", "")


def is_had() -> bool:
    """Whether this system gives huge pages to who asks for them, and its C library can ask."""
    if not sys.platform.startswith("linux") or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 35):
        return False
    return _STATE.exists() and "[madvise]" in _STATE.read_text(encoding="ascii")


def environment(old: Mapping[str, str]) -> dict[str, str]:
    """The variables that tell glibc, beside what it was told otherwise."""
    told = [old["GLIBC_TUNABLES"]] if old.get("GLIBC_TUNABLES") else []
    return {"GLIBC_TUNABLES": ":".join([*told, f"{TUNABLE}=1"])}


start_anew()
