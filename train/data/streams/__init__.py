"""Datasets that are read as they come: rows, lanes of rows, and the batches that are made of them."""
