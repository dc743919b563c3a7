"""What is trained on: one function for each objective."""
