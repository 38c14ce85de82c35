"""How good a model's pictures are: prompt sets, metrics and the tables made of them."""
