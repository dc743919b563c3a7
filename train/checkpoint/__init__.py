"""Where a run begins, what it keeps, and how it goes on."""
