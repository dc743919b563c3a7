"""One benchmark for each claim."""
