"""The process of a program: its memory, its logger, what it compiles and keeps, what it need not wake, how it ends."""

from qwen3llada_jax.process import huge_pages

__all__ = ["huge_pages"]
