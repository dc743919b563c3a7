"""Qwen3 as a masked diffusion language model, in JAX."""
