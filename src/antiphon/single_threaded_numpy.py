"""Imports NumPy with a single thread per computation.

Its linear algebra otherwise uses all cores for each product, and its threads wait for each other by spinning: beside an
event loop, SQLite and other searches that makes every one of them slower (a hybrid search of 10,000 chunks on two
cores: 16 ms instead of 4). A search that should be faster has its store split; more searches at once use more cores.

Invariant: whoever needs NumPy imports it from here, before anybody else does.
"""

from __future__ import annotations

import os

for _name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import numpy as np  # noqa: E402

__all__ = ["np"]
