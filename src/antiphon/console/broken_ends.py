"""Says where the recorded streams of a failed request broke off, on the client's side and on the model server's side.

`console/story.py` orders the parts of a recording. The request's page and `antiphon show -v` print these sentences
after the last event of a stream.

Invariant: a stream with a final event gets no sentence, and neither does a recording that lacks its last events.
"""

from __future__ import annotations

from typing import Final

from antiphon.console.story import RecordedCall, Story
from antiphon.engine.ports.journal import Entry

_FINAL: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "error"})
_DONE: Final = "[DONE]"
_FAULTS: Final = {
    "unreachable": "The upstream could not be reached",
    "timed_out": "The upstream was silent for too long",
    "timed_out_or_held_back": "No data arrived for too long",
    "too_large": "The answer became too large",
}


def client_end(entry: Entry, story: Story) -> str:
    """Return a sentence about the end of the client's event stream, or an empty text if the stream ended regularly."""
    if not entry.fault or not story.events or story.more or story.cut:
        return ""
    last = story.events[-1]
    if last.type in _FINAL or last.data == _DONE:
        return ""
    if entry.code == "client_gone":
        return f"The client disconnected at {entry.seconds:.3f} s, before the final event."
    return f"The stream broke off at {entry.seconds:.3f} s. The client got no final event."


def call_end(entry: Entry, story: Story, call: RecordedCall) -> str:
    """Return a sentence about the end of a model call's answer, or an empty text if the answer is complete. A call that
    no upstream answered gets a sentence only if the recording has the reason."""
    fault = str(call.ended.get("fault", ""))
    if fault:
        at = call.ended_at if call.ended_at is not None else entry.seconds
        why = str(call.ended.get("detail", ""))
        return f"{_FAULTS.get(fault, 'The answer broke off')} at {at:.3f} s{': ' if why else '.'}{why}"
    unread = call.ended_at is not None or not call.status or story.cut or call.more or not entry.fault
    if unread or call is not story.calls[-1] or (call.events and call.events[-1].data == _DONE):
        return ""
    if entry.fault == "cancelled":
        return f"Antiphon ended this model call at {entry.seconds:.3f} s, because the request was cancelled."
    if entry.fault in ("upstream", "unknown"):
        return f"The answer broke off at {entry.seconds:.3f} s."
    return ""
