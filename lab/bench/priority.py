"""Lifts the priority of the benchmark's processes above that of other programs.

Linux may group processes by session (*autogroup*), and give each session the same share of the cores. A process's nice
value then has effect only within its session. The nice value of the session's group is in `/proc/PID/autogroup`.

Invariant: the session of the caller keeps its priority, because other programs may run in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

NICE = -5


def lift(pids: Iterable[int]) -> bool:
    """Lift the groups of the sessions of these processes. Returns whether all are lifted now."""
    lifted = True
    own = os.getsid(0)
    for pid in pids:
        # Only root may lift a group, and a kernel may have no groups.
        try:
            if os.getsid(pid) != own:
                Path(f"/proc/{pid}/autogroup").write_text(str(NICE))
        except OSError:
            lifted = False
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, pid, NICE)
    return lifted
