"""What a transport says about a call: headers, and how it failed. Data, and reading it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Headers", "UpstreamError", "UpstreamFault", "header_value"]

Headers = tuple[tuple[str, str], ...]
"""Header pairs in order, names in lower case; duplicates are kept."""


def header_value(headers: Headers, name: str) -> str | None:
    """The first value of a header, by lower-case name."""
    for key, value in headers:
        if key == name:
            return value
    return None


class UpstreamFault(Enum):
    """Why an upstream call ended without a proper end."""

    UNREACHABLE = "unreachable"
    TIMED_OUT = "timed_out"
    CUT = "cut"
    TOO_LARGE = "too_large"


@dataclass(frozen=True, slots=True)
class UpstreamError:
    """An upstream call that failed in transport. `detail` is for logs, and holds no secrets."""

    fault: UpstreamFault
    detail: str
