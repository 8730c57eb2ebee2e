"""What the keeper costs: `python -m benchmarks.instructions`."""
