"""Model folders: ours, and those of Hugging Face, both ways."""
