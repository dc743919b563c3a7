"""What everything that writes text shares: opening a model, asking, and reading what was written."""
