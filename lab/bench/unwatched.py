"""Runs Antiphon without observation of responses, only for comparison: `python -m lab.bench.unwatched serve …`.

Lives here: an empty observation. Not here: the comparison (`telemetry.py`, `telemetry_processes.py`).

No setting turns metrics and usage off, so this program replaces the class that observes responses. The program counts,
traces and logs no response.
"""

from __future__ import annotations

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.exchange.response_exchange import ResponseExchange
from antiphon.engine.ports.jobs import JobRequest
from antiphon.engine.ports.observer import Unobserved
from antiphon.observability.observation import Observation, Telemetry
from antiphon.types.transport import Headers


class Nobody(Unobserved, Observation):
    """An observation that records nothing."""

    def __init__(self, request_id: str = "") -> None:
        self.door = ""
        self.request_id = request_id

    def watch(self, exchange: ResponseExchange) -> None:
        exchange.observe(self)

    def begin_job(self, job: JobRequest, headers: Headers, attempt: int) -> None:
        pass

    def drop(self) -> None:
        pass

    def end(self, exchange: ResponseExchange, outcome: str, failure: Failure | None = None, **known: object) -> None:
        pass


def _observe(_: Telemetry, door: str, request_id: str, owner: str, headers: Headers | None = ()) -> Observation:
    return Nobody(request_id)


def main() -> int:
    """Run Antiphon's command line with the empty observation."""
    from antiphon.entry import main as antiphon

    Telemetry.observe = _observe  # type: ignore[method-assign,assignment]
    return antiphon()


if __name__ == "__main__":
    raise SystemExit(main())
