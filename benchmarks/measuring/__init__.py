"""Readings of what peers/ does: which, in what order, on what machine, and what is made of them."""
