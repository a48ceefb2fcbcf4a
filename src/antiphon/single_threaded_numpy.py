"""Imports NumPy with a single thread per computation.

By default, NumPy's linear algebra uses all cores for each product, and its threads spin while they wait. The spinning
threads slow down the event loop, SQLite and other searches. (A hybrid search of 10,000 chunks on two cores took 16 ms
instead of 4.) With a single thread per computation, concurrent searches still use several cores. To make one search
faster, split its vector store.

Invariant: all modules import NumPy from this module, so the environment variables below are set before NumPy loads.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

__all__ = ["np"]
