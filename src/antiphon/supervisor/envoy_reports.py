"""Handles the orders with Envoy's log lines in a worker.

`worker_orders.py` defines these orders and sends them. This module passes each log line to the worker's telemetry. Only
a serving process imports this module, because telemetry takes memory and time that the parent process does not need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.callers import NO_CALLER
from antiphon.envoy.routes import UNKNOWN_URL
from antiphon.errors import NotFound
from antiphon.observability.endings import EarlyEnd, EarlyEnds
from antiphon.observability.observation import Telemetry


def take_unknown_path(telemetry: Telemetry, unknown: Callable[[str, str], NotFound], order: dict[str, Any]) -> None:
    """Handle the order `PATH_UNKNOWN`. `unknown` returns the error for a method and an unknown path."""
    message = unknown(order["method"], order["path"]).message
    failure = Failure("client", message, order["status"], UNKNOWN_URL)
    telemetry.refused("envoy", order["request_id"], NO_CALLER, order["path"], failure, message)


def take_early_end(ends: EarlyEnds, order: dict[str, Any]) -> None:
    """Handle the order `STREAM_ENDED`."""
    ends.hear(order["request_id"], EarlyEnd(*order["end"]))
