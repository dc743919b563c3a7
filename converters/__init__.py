"""Programs that bring Qwen3 checkpoints in, take them out, and compare them."""

import qwen3llada_jax  # noqa: F401 - before any other: what it does first (huge_pages) is wasted later
