"""PyTorch, where it is installed beside this project, out of a program's way.

transformers imports it with the first tokenizer, for models that no program here runs: that takes longer than all else
that a program imports. A caller of the library may want those models, so only programs do without.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3llada_jax.process.programs import IS_ONE


@contextmanager
def unseen(is_program: bool = IS_ONE) -> Iterator[None]:
    """Import transformers inside: of a program it finds no PyTorch, unless somebody has imported that already."""
    if not is_program or "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # as Python marks what is not to be found
    try:
        yield
    finally:
        del sys.modules["torch"]  # for what a user's own rule or task imports
