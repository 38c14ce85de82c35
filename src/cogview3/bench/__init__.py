"""Benchmarks of speed: everything that is compared runs side by side, in one process."""
