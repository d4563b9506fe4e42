"""What is measured: quality per byte and speed. Results are committed under `results/`."""
