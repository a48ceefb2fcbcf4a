"""Exports the recorded model calls of a request as a cassette, which `antiphon replay` serves.

Lives here: the choice of calls. Not here: the format (`recordings/format.py`), pairing calls with their answers
(`console/story.py`).

Invariant: the cassette holds the calls in their order. A call whose answer did not end is marked as cut.
"""

from __future__ import annotations

from antiphon.console.story import CallParts, model_calls
from antiphon.engine.ports.journal import Recording
from antiphon.errors import InvalidRequest
from antiphon.recordings.format import CannotRecord, entry_line, make_entry


def exported(recording: Recording) -> list[bytes]:
    """The lines of the cassette, one for each call that the upstream answered. Raises `InvalidRequest` if a call cannot
    be exported."""
    try:
        return [_line(call, cut=recording.cut) for call in model_calls(recording) if call.status]
    except CannotRecord as error:
        raise InvalidRequest(f"This request cannot be exported: {error}", code="cannot_export") from None


def _line(call: CallParts, *, cut: bool) -> bytes:
    chunks = [(max(0.0, part.at - call.begun.at), part.data) for part in call.data]
    broke = (call.end is None or bool(call.end.facts.get("fault"))) and not _is_done(chunks)
    return entry_line(make_entry(call.begun.data, call.status, call.headers, chunks, cut=cut or broke))


def _is_done(chunks: list[tuple[float, bytes]]) -> bool:
    """Whether the stream has its last event, after which the exchange reads no further."""
    return b"".join(data for _, data in chunks[-2:]).rstrip().endswith(b"[DONE]")
