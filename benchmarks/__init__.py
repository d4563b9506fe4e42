"""What is measured: quality per byte and speed. Results are committed under `results/`."""

from sfic.threads import limit_blas_threads

# As the services do: with more, numpy's small products wait for each other.
limit_blas_threads()
