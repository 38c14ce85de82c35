"""Embeddings to pictures: base stage, relay stages, and how model folders say how they are sampled."""
