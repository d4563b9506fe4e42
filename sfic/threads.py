"""Threads of numpy's linear algebra. Those of ONNX Runtime are settings of their own."""

from __future__ import annotations

import os

__all__ = ["limit_blas_threads"]


def limit_blas_threads() -> None:
    """Keep numpy to one thread, unless the environment says otherwise; before numpy is loaded.

    Its matrices are small here, and a pool of threads for each process only gets in the way of the
    networks' own (measured in `docs/decisions/entropy-transformer.md`).
    """
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
