"""Files: written whole or not at all; rows of data, tensors, the hub."""
