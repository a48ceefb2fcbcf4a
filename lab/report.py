"""The report of a lab that checks one thing after another.

Lives here: printing each check when it ends, and the list of problems. Not here: tables of figures (`scale/report.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Report:
    """The results of a run, printed as they arrive. A run without an entry in `wrong` is good."""

    wrong: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"{time.monotonic() - self.began:5.0f} s  {text}", flush=True)

    def check(self, what: str, problems: Sequence[str] = ()) -> None:
        """Print one check and its problems, and note the problems."""
        self.say(f"{'WRONG' if problems else 'ok   '}  {what}")
        for one in problems:
            self.wrong.append(f"{what}: {one}")
            print(f"                {one}", flush=True)
