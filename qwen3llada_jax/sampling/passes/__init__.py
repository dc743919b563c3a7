"""One pass: what the model is asked, what it proposes, what the rules write, and what is remembered of it."""
