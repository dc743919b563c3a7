"""Programs that train a diffusion language model and show how it went."""

import qwen3llada_jax  # noqa: F401 - before any other: what it does first (huge_pages) is wasted later
