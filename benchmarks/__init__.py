"""What the keeper costs: `python -m benchmarks.cpu` and `python -m benchmarks.instructions`."""
