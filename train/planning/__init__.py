"""What `train.plan` reads off a compiled program."""
