"""How likely texts are: cut into rows, and the rows summed up."""
