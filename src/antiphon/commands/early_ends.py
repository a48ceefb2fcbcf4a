"""Envoy's word on who ended a stream early, from its line to the sidecar that served the stream.

Lives here: reading the line, in `antiphon up`, and taking it, in a worker. Not here: Envoy's side
(`envoy/failure_lines.py`), and what a sidecar makes of it (`observability/early_ends.py`).

Nobody but a sidecar knows which of them served a request, so all are told.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from antiphon.commands.orders import Orders
from antiphon.observability.early_ends import EarlyEnd, EarlyEnds
from antiphon.types.transport import ENDED_EARLY

_ORDER = "stream_ended"
_MARK = f'"{ENDED_EARLY}"'


def pass_on(line: str, sidecars: Iterable[Orders]) -> bool:
    """Tell the sidecars, if it is such a line of Envoy's that says who it was; whether it is. (What Envoy cannot tell
    either stays a line of its own.)"""
    if _MARK not in line:
        return False
    try:
        said = json.loads(line)
        if said["message"] != ENDED_EARLY or said["fault"] == "unknown":
            return False
        end = [said["fault"] == "cancelled", said["details"], said["status"]]
        order = {"do": _ORDER, "request_id": said["request_id"], "end": end}
    except (ValueError, KeyError):
        return False
    for sidecar in sidecars:
        sidecar.tell(order)
    return True


def take(order: dict[str, Any], ends: EarlyEnds) -> bool:
    """Whether it was that."""
    if order["do"] != _ORDER:
        return False
    ends.hear(order["request_id"], EarlyEnd(*order["end"]))
    return True
