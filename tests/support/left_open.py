"""Finds resources that a test leaves open: descriptors of files below pytest's folders, and threads of stores.

Lives here: the search. Not here: the moment of the search (a fixture of the tests that need it).
"""

from __future__ import annotations

import gc
import os
import threading


def left_open() -> tuple[set[str], set[threading.Thread]]:
    """The open files of this process below pytest's folders, and its threads of stores."""
    gc.collect()
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        found |= {f"{name} {path}"} if "/pytest-" in path else set()
    return found, {one for one in threading.enumerate() if "antiphon" in one.name or "connection" in one.name.lower()}
