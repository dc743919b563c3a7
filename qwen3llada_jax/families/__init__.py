"""Families of checkpoints: what each does in its own way. They stand below the model, which reads them."""
