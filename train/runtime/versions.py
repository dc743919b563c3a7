"""What a run was computed with: a continuation is bitwise the same only under the same versions."""

import functools
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import qwen3llada_jax

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "datasets", "numpy")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of python, the libraries and this project, with its git commit where it is a checkout."""
    found = {"python": platform.python_version(), "qwen3llada_jax": qwen3llada_jax.__version__}
    commit = _commit(Path(qwen3llada_jax.__file__).parents[1])
    if commit is not None:
        found["commit"] = commit
    return found | {name: version(name) for name in _LIBRARIES}


def _commit(root: Path) -> str | None:
    """`<sha>`, with `-dirty` where tracked files are changed; None outside a checkout, or where git is not."""
    if not (root / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
