"""Tasks of lm-evaluation-harness, which asks while a model answers."""
