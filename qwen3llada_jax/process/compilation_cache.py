"""What JAX has compiled, kept for the next start of a program in the user's cache folder.

JAX keeps it only where it is told to (`JAX_COMPILATION_CACHE_DIR`), without end unless it is told a size, and stumbles
over what a killed writer left. What its own variables say holds here, too.
"""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import jax

from qwen3llada_jax.errors import brief

MOST_BYTES = 1 << 30
MOST_PROGRAMS = 500  # JAX looks at all of them at every write
# Below this it takes as long to keep a program as to compile it.
_WORTH_SECONDS = 0.1
_SETTINGS = {
    "jax_compilation_cache_max_size": MOST_BYTES,
    "jax_persistent_cache_min_compile_time_secs": _WORTH_SECONDS,
    "jax_persistent_cache_enable_xla_caches": "none",  # XLA's own files for GPUs, which nothing bounds
}
_PROGRAM, _LAST_USED = "-cache", "-atime"  # the ends of JAX's names


def keep_programs() -> None:
    """Keep what this process compiles from now on, and take what an earlier one kept; where that cannot be, say so.

    For a program that is a single process: of several JAX lets only the first write, and those that do not see its
    folder would compile without it, which on GPUs they do together.
    """
    if jax.config.values["jax_compilation_cache_dir"] or not jax.config.values["jax_enable_compilation_cache"]:
        return
    for name, value in _SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    try:
        folder = folder_of(os.environ)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # whoever writes there runs code here
        if jax.config.values["jax_compilation_cache_max_size"] != -1:  # without a bound JAX notes nothing
            with filelock.FileLock(folder / ".lockfile", timeout=10):  # JAX's own
                tidy(folder)
    except (OSError, RuntimeError) as error:  # filelock's are of both kinds
        _say(brief(error, 200))
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def folder_of(environment: Mapping[str, str]) -> Path:
    """Where programs are kept, by the rules of XDG, as other programs of this field keep their caches on every system.

    Raises:
        RuntimeError: the user has no home folder.
    """
    named = Path(environment.get("XDG_CACHE_HOME", ""))
    return (named if named.is_absolute() else Path.home() / ".cache") / "qwen3llada_jax" / "compiled"


def tidy(folder: Path) -> None:
    """Remove programs that a writer did not finish, and those used longest ago beyond `MOST_PROGRAMS`.

    JAX notes beside each, after it, when it was used last. Of one without a note it may have half, and each later write
    would fail in search of the note.
    """
    used: list[tuple[int, Path]] = []
    for program in folder.glob(f"*{_PROGRAM}"):
        note = _note_of(program)
        if note.exists():
            used.append((int.from_bytes(note.read_bytes(), "little"), program))
        else:
            program.unlink()
    for _, program in sorted(used)[:-MOST_PROGRAMS]:
        program.unlink()
        _note_of(program).unlink()


def say_trouble_once() -> None:
    """Say in one line that programs cannot be written or read (a full disk, say): JAX warns of each of them."""
    shown = warnings.showwarning
    is_said = False

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        nonlocal is_said
        before, is_it, reason = str(message).partition("persistent compilation cache entry for ")
        if not is_it or not before.startswith("Error "):
            shown(message, *where, **more)
        elif not is_said:
            is_said = True
            _say(brief(reason, 200))

    warnings.showwarning = show


def _note_of(program: Path) -> Path:
    return program.with_name(program.name.removesuffix(_PROGRAM) + _LAST_USED)


def _say(reason: str) -> None:
    print(
        f"what is compiled is not kept for the next start ({reason}); JAX_COMPILATION_CACHE_DIR names another folder, "
        "JAX_ENABLE_COMPILATION_CACHE=0 does without",
        file=sys.stderr,
    )
