"""matplotlib, which only pictures need."""

from pathlib import Path
from typing import Any

from qwen3llada_jax.errors import InputError


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError("drawing needs matplotlib: pip install matplotlib") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def write_picture(figure: Any, path: Path, dpi: int = 130) -> None:
    """A matplotlib figure as a PNG, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        figure.savefig(part, dpi=dpi, format="png")
        part.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
