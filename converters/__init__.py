"""Programs that bring Qwen3 checkpoints in, take them out, and compare them."""
