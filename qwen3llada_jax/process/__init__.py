"""The process of a program: its memory, its logger, what it compiles and keeps, what it need not wake, how it ends."""

import gc

from qwen3llada_jax.process import huge_pages, programs

__all__ = ["huge_pages"]

if programs.IS_ONE:
    # Imports and traced programs are millions of objects that live as long as the process: to go through them for
    # garbage as often as Python does takes a tenth of a start.
    gc.set_threshold(50_000, 20, 100)
