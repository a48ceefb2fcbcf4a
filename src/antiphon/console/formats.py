"""Formats values for people: times, durations, sizes, counts, costs.

The templates use these functions as filters. No function returns HTML.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from antiphon.engine.ports.journal import MOST_COUNTED

NONE: Final = "\N{EN DASH}"
"""The text that stands for a value that does not exist."""
_UNITS: Final = ((86_400, "d"), (3600, "h"), (60, "m"))


def duration(seconds: float | None) -> str:
    """Format a duration briefly: `420 ms`, `3.1 s`, `2 m 5 s`, `3 h 2 m`."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    parts, left = [], int(seconds)
    for size, unit in (*_UNITS, (1, "s")):
        if left >= size:
            parts.append(f"{left // size} {unit}")
            left %= size
    return " ".join(parts[:2])


def tick(seconds: float, whole: float) -> str:
    """Format a mark of an axis that is `whole` seconds long. The marks of a short axis have a decimal: `0.7 ms`."""
    return f"{seconds * 1000:.1f} ms" if whole < 0.01 else duration(seconds)


def age(at: float | None, now: float | None = None) -> str:
    """Format the time since `at` in one unit: `12 s ago`."""
    if not at:
        return NONE
    seconds = max(0.0, (time.time() if now is None else now) - at)
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return f"{int(seconds)} s ago"


def moment(at: float | None) -> str:
    """Format a date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at)) if at else NONE


def clock(at: float | None, now: float | None = None) -> str:
    """Format a time of the day in UTC: `05:40:41`. If the day is not today, the date comes first: `11-26 05:40:41`."""
    if not at:
        return NONE
    today = time.gmtime(now)[:3] == time.gmtime(at)[:3]
    return time.strftime("%H:%M:%S" if today else "%m-%d %H:%M:%S", time.gmtime(at))


def iso(at: float | None) -> str:
    """Format a time for programs (ISO 8601, UTC)."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at)) if at else ""


def size(count: float | None) -> str:
    """Format a size in bytes: `512 B`, `12 KB`, `3.4 MB`."""
    if count is None:
        return NONE
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def count(number: float | None) -> str:
    """Format a whole number with separators: `12,345`."""
    return NONE if number is None else f"{number:,.0f}"


def counted(number: int) -> str:
    """Format the total of a list of requests. The store stops counting at `MOST_COUNTED`, so the total may be larger:
    `100,000 or more`."""
    return count(number) + (" or more" if number >= MOST_COUNTED else "")


def short(number: float | None) -> str:
    """Format a count in few characters: `950`, `12.3k`, `4.5M`."""
    if number is None:
        return NONE
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"


def percent(share: float | None) -> str:
    """Format a fraction as a percentage: 0.5 is `50 %`."""
    return NONE if share is None else f"{share * 100:.0f} %"


def cost(millionths: float | None) -> str:
    """Format a cost, which is in millionths of the currency of the setting `prices`."""
    if not millionths:
        return NONE
    return f"{millionths / 1e6:.6f}" if millionths < 1000 else f"{millionths / 1e6:.4f}"


def owner_name(owner: str) -> str:
    """Return the readable part of an owner's id, without the id's prefix: `n:anna` is `anna`."""
    return owner[2:] if owner[1:2] == ":" else owner


def short_id(text: str) -> str:
    """Shorten a long id to its beginning and its end. The beginning alone is not enough, because ids from the same
    second begin alike."""
    return text if len(text) <= 18 else f"{text[:9]}…{text[-7:]}"


FILTERS: Final[dict[str, Callable[..., object]]] = {
    "age": age,
    "clock": clock,
    "cost": cost,
    "count": count,
    "counted": counted,
    "duration": duration,
    "iso": iso,
    "moment": moment,
    "owner_name": owner_name,
    "percent": percent,
    "short": short,
    "short_id": short_id,
    "size": size,
    "tick": tick,
}
