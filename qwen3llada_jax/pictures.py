"""matplotlib, which only pictures need."""

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
        raise InputError("drawing needs matplotlib: pip install 'qwen3llada_jax[plot]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
