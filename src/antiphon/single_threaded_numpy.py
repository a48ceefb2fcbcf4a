"""Imports NumPy with a single thread per computation.

By default its linear algebra uses all cores for each product, and its threads wait by spinning. This slows down the
event loop, SQLite and other searches (a hybrid search of 10,000 chunks on two cores: 16 ms instead of 4). To make a
search faster, split its store; concurrent searches use more cores.

Invariant: all modules import NumPy from here, so this runs before any other import of it.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

__all__ = ["np"]
