"""Deterministic replacements for random ids and for the clock."""

from __future__ import annotations

from collections import Counter

FIXED_TIME = 1_700_000_000.0


class SequentialIds:
    """Returns the ids `resp_1`, `msg_1`, `msg_2`, … in the order of the calls."""

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def __call__(self, prefix: str) -> str:
        self._given[prefix] += 1
        return f"{prefix}_{self._given[prefix]}"


def fixed_clock() -> float:
    return FIXED_TIME
