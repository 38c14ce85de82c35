"""Evaluation of a model's pictures: prompt sets, metrics and tables."""
