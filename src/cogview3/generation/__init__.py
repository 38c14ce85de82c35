"""Embeddings to pictures: base stage, relay stages, and the sampling settings of model folders."""
