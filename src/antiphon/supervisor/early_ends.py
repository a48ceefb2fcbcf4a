"""Passes Envoy's log line about who ended a stream early to the sidecar that served the stream.

`antiphon up` parses the line and sends it as an order, and a worker receives the order. `envoy/failure_lines.py`
configures the line in Envoy, and `observability/endings.py` uses the line in the sidecar.

The parent does not know which sidecar served a request, so it sends the line to all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from antiphon.observability.endings import EarlyEnd, EarlyEnds
from antiphon.supervisor.worker_orders import Orders
from antiphon.types.transport import ENDED_EARLY

ORDER = "stream_ended"
_MARK = f'"{ENDED_EARLY}"'


def pass_on(line: str, sidecars: Iterable[Orders]) -> bool:
    """Send the line to the sidecars if it is Envoy's line about the end of a stream. Returns True if the line was sent.
    If Envoy does not know which side ended the stream, the line is not sent and stays in the log."""
    if _MARK not in line:
        return False
    try:
        said = json.loads(line)
        if said["message"] != ENDED_EARLY or said["fault"] == "unknown":
            return False
        end = [said["fault"] == "cancelled", said["details"], said["status"]]
        order = {"do": ORDER, "request_id": said["request_id"], "end": end}
    except (ValueError, KeyError):
        return False
    for sidecar in sidecars:
        sidecar.tell(order)
    return True


def take(ends: EarlyEnds, order: dict[str, Any]) -> None:
    """Handle an order about the end of a stream, in the worker."""
    ends.hear(order["request_id"], EarlyEnd(*order["end"]))
