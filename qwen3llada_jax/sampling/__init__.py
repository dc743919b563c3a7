"""Writing by unmasking."""
