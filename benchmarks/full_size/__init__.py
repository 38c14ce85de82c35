"""This system beside its peers at full size, prompt to picture: `python -m benchmarks.full_size`."""
