"""Programs that write with a diffusion language model and show how it wrote."""

import qwen3llada_jax  # noqa: F401 - before any other: what it does first (huge_pages) is wasted later
