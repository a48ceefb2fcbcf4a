"""Exports the recorded model calls of a request as a cassette, which `antiphon replay` serves.

Lives here: the choice of parts. Not here: the format (`recordings/format.py`), recording
(`engine/exchange/recording_exchange.py`).

Invariant: the cassette holds the calls in their order. A call whose answer did not end is marked as cut.
"""

from __future__ import annotations

from antiphon.engine.ports.journal import Part, Recording
from antiphon.errors import InvalidRequest
from antiphon.recordings.format import CannotRecord, cassette_line


def exported(recording: Recording) -> list[bytes]:
    """The lines of the cassette, one for each call that the upstream answered. Raises `InvalidRequest` if a call cannot
    be exported."""
    calls: list[list[Part]] = []
    for part in recording.parts:
        if part.kind == "call":
            calls.append([part])
        elif calls and part.kind in ("head", "data", "end"):
            calls[-1].append(part)
    try:
        return [line for call in calls if (line := _line(call, cut=recording.cut))]
    except CannotRecord as error:
        raise InvalidRequest(f"This request cannot be exported: {error}", code="cannot_export") from None


def _line(call: list[Part], *, cut: bool) -> bytes:
    """The line of one call; empty if the upstream did not answer."""
    begun = call[0]
    head = next((part for part in call if part.kind == "head"), None)
    status = int(head.facts.get("status", 0)) if head is not None else 0
    if head is None or not status:
        return b""
    headers = [(str(name), str(value)) for name, value in head.facts.get("headers", ())]
    chunks = [(max(0.0, part.at - begun.at), part.data) for part in call if part.kind == "data"]
    ended = next((part for part in call if part.kind == "end"), None)
    broke = (ended is None or bool(ended.facts.get("fault"))) and not _is_done(chunks)
    return cassette_line(begun.data, status, headers, chunks, cut=cut or broke)


def _is_done(chunks: list[tuple[float, bytes]]) -> bool:
    """Whether the stream has its last event, after which the exchange reads no further."""
    return b"".join(data for _, data in chunks[-2:]).rstrip().endswith(b"[DONE]")
