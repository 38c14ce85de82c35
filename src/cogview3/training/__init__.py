"""Training: one loop, one objective for each kind of recipe."""
