"""What is said of the state to an operator, and what the settings ask of it: values that backends share.

Not here: finding it out (`state_report.py`, `postgres/examining.py`), showing it (`commands/doctor.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from antiphon.stores.deployment import Keys


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that was found; `advice` says what to do."""

    verdict: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings ask of the state. `connections`: of all processes of this machine together."""

    keys: Keys
    connections: int
    vectors: bool
