"""What `train.report` draws."""
