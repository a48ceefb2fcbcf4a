"""Whether this process is to run the plain Python that Antiphon is written in, although some of it was compiled.

Invariant: this holds for the process; it is no setting, since settings are read by what it decides about.
"""

from __future__ import annotations

import os

VARIABLE = "ANTIPHON_PURE"
"""The environment variable; anything but nothing and 0 asks for the plain Python."""

PURE = os.environ.get(VARIABLE, "") not in ("", "0")
