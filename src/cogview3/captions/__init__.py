"""Old captions to new ones: collected from a strong model, and learned from it."""
