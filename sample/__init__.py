"""Programs that write with a diffusion language model and show how it wrote."""
