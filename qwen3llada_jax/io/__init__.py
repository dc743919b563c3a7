"""Files: model folders, checkpoints of Hugging Face, rows of data."""
