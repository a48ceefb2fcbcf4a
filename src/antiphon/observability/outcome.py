"""The one log line of a response: quiet when it is well or its client's own affair, a warning otherwise.

Lives here: the level and the fields that every door has in common. Not here: when the line is written (the doors).

Invariant: a response that failed by what is not known to be its client's doing leaves one line at `warning`, with its
cause, also where nobody noted one; all durations are seconds. (What found no room is told in one line for many:
`refusals.py`.)
"""

from __future__ import annotations

import logging
from typing import Any

import structlog

from antiphon.engine.exchange.failure import Failure
from antiphon.observability.advice import advice_for


def with_cause(failure: Failure | None, outcome: str | None) -> Failure | None:
    """The failure; of what failed without one noted, that nobody noted it."""
    if failure is None and outcome in ("failed", "error"):
        return Failure("ours", "no cause was noted", operation="unknown")
    return failure


def write_outcome(
    log: Any, event: str, failure: Failure | None, seconds: float, known: dict[str, Any], *, warn: bool = False
) -> None:
    """Write the line without empty fields. `warn`: a part of the request is unknown here."""
    failure = with_cause(failure, known.get("outcome"))
    level = logging.WARNING if warn else logging.INFO
    if failure is not None and failure.counted:
        level = logging.DEBUG
    elif failure is not None and failure.loud:
        level = logging.WARNING
    # The logger that the lazy one stands for: asked once for a line.
    bound = log.bind()
    if not bound.is_enabled_for(level):
        return
    # Keywords would be copied four times on their way.
    bound = bound.bind()
    told = structlog.get_context(bound)
    if failure is not None:
        told.update(failure.fields())
        if advice := advice_for(failure):
            told["advice"] = advice
    for name, value in known.items():
        if value:
            told[name] = value
    told["seconds"] = round(seconds, 6)
    bound.log(level, event)
