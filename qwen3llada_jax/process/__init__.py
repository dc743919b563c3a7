"""The process of a program: its memory, its logger, a compiler that looks for chips, and how it ends."""

from qwen3llada_jax.process import huge_pages, root_logger

__all__ = ["huge_pages", "root_logger"]
