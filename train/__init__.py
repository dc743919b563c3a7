"""Programs that train a diffusion language model and show how it went."""
