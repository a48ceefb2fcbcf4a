"""Orders the parts of a recording for display: the request, each model call with its answer, the tools, and the events.

This module finds the answer of each model call, and splits event streams into events. The module also explains why a
request has no contents. It exports a request as a cassette, a file from which `antiphon replay` serves the recorded
answers. `engine/exchange/recording_exchange.py` records a request, and `recordings/format.py` defines the format of
cassettes.

Invariants: bytes that are not valid events stay visible unchanged. A cassette contains the client's request, and then
the model calls in order. A cassette marks a model call as cut if the end of the call's answer is missing. A model call
without an answer has the status 0.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Mapping

import msgspec

from antiphon import __version__
from antiphon.api.chat import PASSED
from antiphon.console.formats import moment
from antiphon.engine.ports.journal import REFUSED, Entry, Part, Recording
from antiphon.engine.running.journal import HELD_SECONDS
from antiphon.errors import InvalidRequest
from antiphon.observability.outcome import hint_for
from antiphon.recordings.format import CannotRecord, entry_line, make_entry
from antiphon.types.transport import LOCAL_REPLY

_MOST_EVENTS = 2000
_LONGEST_GIST = 300
_OTHER_IDS = ("file-", "vs_", "conv_", "msg_", "batch_", "vsfb_", "cntr_")
_FEW_DIGITS = re.compile(r"([a-z]{1,8}_)?[0-9a-f-]{1,15}")


class RecordedEvent(msgspec.Struct, frozen=True):
    """One event of a stream. `at` is in seconds after the request's start. `type` is empty if the event has no type."""

    at: float
    type: str
    data: str

    @property
    def gist(self) -> str:
        """The new content of this event in one short line: the text of a delta. For any other event, the data without
        `type` and `sequence_number`."""
        try:
            found = msgspec.json.decode(self.data)
        except msgspec.DecodeError:
            return self.data[:_LONGEST_GIST]
        if not isinstance(found, dict):
            return self.data[:_LONGEST_GIST]
        match found:
            case {"delta": str(text)} | {"choices": [{"delta": {"content": str(text)}}]} if text:
                return text[:_LONGEST_GIST]
            case {"choices": [choice, *_], **rest}:
                found = {"choices": [choice]} | ({"usage": rest["usage"]} if rest.get("usage") else {})
        kept = {name: value for name, value in found.items() if name not in ("type", "sequence_number")}
        return msgspec.json.encode(kept).decode()[:_LONGEST_GIST]


class RecordedCall(msgspec.Struct):
    """One chat request and its answer. `events` are the chunks of a streamed answer. `answer` is the body of any other
    answer. `sent_headers` are the recorded headers of the request, and `headers` are the recorded headers of the
    answer. `local`: Envoy wrote the answer, because no upstream answered."""

    at: float
    body: bytes
    facts: Mapping[str, object]
    path: str = ""
    sent_headers: list[tuple[str, str]] = []
    status: int = 0
    local: bool = False
    head_at: float | None = None
    headers: list[tuple[str, str]] = []
    answer: bytes = b""
    events: list[RecordedEvent] = []
    more: int = 0
    ended: Mapping[str, object] = {}
    ended_at: float | None = None


class RecordedToolResult(msgspec.Struct, frozen=True):
    """The result of one hosted tool call."""

    at: float
    name: str
    output: str
    facts: Mapping[str, object]


class CallParts(msgspec.Struct):
    """The recorded parts of one model call. `begun` is the chat request, `head` the answer's status and headers, `data`
    the answer's body, and `end` the end of the answer. `head` and `end` are None if the upstream did not answer, or if
    the recording ends earlier."""

    begun: Part
    head: Part | None = None
    data: list[Part] = []
    end: Part | None = None

    @property
    def status(self) -> int:
        """The status of the upstream's answer, or 0 if no upstream answered. A local reply of Envoy does not count as
        an answer."""
        return 0 if self.head is None or self.local else int(self.head.facts.get("status", 0))

    @property
    def local(self) -> bool:
        """Whether the answer is a local reply, which Envoy writes if no upstream answers."""
        return any(name == LOCAL_REPLY for name, _ in self.headers)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The recorded headers of the answer."""
        return _headers_of(self.head) if self.head is not None else []


class Story(msgspec.Struct):
    """The recorded contents of one request, on the client's side and on the model server's side. `answer` is the body
    that the client got, unless the body was an event stream. `events` lists at most 2,000 events. `more` and
    `RecordedCall.more` count the events that the list leaves out. `headers` and `answer_headers` have only the headers
    that a recording may contain."""

    request: bytes = b""
    method: str = ""
    path: str = ""
    headers: list[tuple[str, str]] = []
    calls: list[RecordedCall] = []
    tools: list[RecordedToolResult] = []
    events: list[RecordedEvent] = []
    more: int = 0
    answer: bytes = b""
    answer_status: int = 0
    answer_headers: list[tuple[str, str]] = []
    cut: bool = False

    @property
    def failed_tools(self) -> list[RecordedToolResult]:
        """The results of the tool calls that failed."""
        return [tool for tool in self.tools if tool.facts.get("failed")]

    def tools_after(self, number: int) -> list[RecordedToolResult]:
        """Return the results of the tools that ran after the model call at this index, and before the next call."""
        start = self.calls[number].at if number else 0.0
        end = self.calls[number + 1].at if number + 1 < len(self.calls) else float("inf")
        return [tool for tool in self.tools if start <= tool.at < end]


def tell(recording: Recording) -> Story:
    """Convert a recording to a `Story`."""
    story = Story(cut=recording.cut, calls=[_call(parts) for parts in model_calls(recording)])
    sent: list[Part] = []
    for part in recording.parts:
        match part.kind:
            case "request":
                story.request, story.headers = part.data, _headers_of(part)
                story.method, story.path = str(part.facts.get("method", "")), str(part.facts.get("path", ""))
            case "tool":
                output = part.data.decode(errors="replace")
                story.tools.append(RecordedToolResult(part.at, str(part.facts.get("name", "")), output, part.facts))
            case "event_head":
                story.answer_status, story.answer_headers = int(part.facts.get("status", 0)), _headers_of(part)
            case "event":
                sent.append(part)
            case _:
                pass
    story.events, story.more, story.answer = _read(sent)
    return story


def why_no_entry(name: str) -> str:
    """Return sentences that explain why a journal with other requests has no request with the id `name`."""
    if name.startswith(_OTHER_IDS):
        return "The journal has requests, and this is the id of another object. Give the id of a request or a response."
    if _FEW_DIGITS.fullmatch(name):
        return (
            "The journal has no request with this id. If these are the first digits of an id, give at least 16 digits "
            "after 'resp_' or 'req_', or 16 characters of a UUID."
        )
    return (
        "The journal has no request with this id. Antiphon may have counted a refused request in a shared row. "
        "Antiphon deletes rows after console.keep."
    )


def was_refused(entry: Entry) -> bool:
    """Whether Antiphon refused the request before it called an upstream or began a response."""
    unread = entry.fault == "client" and not entry.response_id and not entry.calls and not entry.detail.upstream_status
    return entry.outcome == REFUSED or unread


def is_never_stored(entry: Entry, never: Collection[str]) -> bool:
    """Whether Antiphon stores no response of the entry's owner. `never` is the setting `owner.store_never`."""
    return not entry.stored and (entry.owner in never or "*" in never)


def why_no_contents(entry: Entry, never: Collection[str] = (), process: str = "") -> str:
    """Return a sentence that explains why the contents of a request are not readable. If a setting can change this for
    later requests, the sentence names the setting. `never` is the setting `owner.store_never`. `process` is the process
    that has not found the contents in its memory."""
    if entry.recorded and not entry.stored:
        until = entry.ended_at + HELD_SECONDS
        if time.time() > until:
            return f"The process that served this request deleted its contents at {moment(until)} UTC."
        if process and entry.detail.held_by == process:
            return (
                "This process served the request, and has deleted its contents early to make room for newer requests "
                "with store: false. A process holds at most 32 MiB of such contents, or console.record_bytes."
            )
        holder = (
            f"the process {entry.detail.held_by}" if entry.detail.held_by else "the process that served the request"
        )
        return (
            f"The contents of this request are only in the memory of {holder}, until {moment(until)} UTC at the "
            "latest. "
            "To see them, load the request's page in the console again until that process answers. "
            "If that process has ended or made room for newer requests, the contents are deleted."
        )
    if entry.recorded:
        return "The contents of this request were recorded, but are deleted by now."
    if was_refused(entry):
        told = bool(entry.detail.message) and not hint_for(entry)
        return (
            "Antiphon answered with an error before it began a response, so there are no contents to show."
            + " The message above tells the client what to change." * told
        )
    if entry.door == PASSED:
        unchanged = "Antiphon forwards requests to this path unchanged, so it records no contents of them."
        if entry.fault and not entry.detail.upstream_status and entry.first is None:
            return f"{unchanged} No upstream has answered this request."
        return f"{unchanged} The client has received the upstream's answer."
    if is_never_stored(entry, never):
        return (
            "The setting owner.store_never covers the owner of this request. So Antiphon stores and records no "
            "contents, with any settings of the console."
        )
    if not entry.stored:
        return (
            "The contents are not recorded. The request set store: false or ended before it was stored, so Antiphon "
            f"keeps only the facts on this page. To record such requests in memory for {HELD_SECONDS / 60:.0f} "
            "minutes, set console.record and console.record_unstored."
        )
    if entry.door == "background" and entry.outcome == "cancelled" and not (entry.calls or entry.detail.attempt):
        return (
            "This response was cancelled before a worker ran it, so Antiphon called no model. Antiphon records the "
            "requests of such responses if console.record is 'all'."
        )
    return (
        "Antiphon did not record the model server's side of this request. To record it for later requests, set "
        f"console.record to {_wanted(entry)}."
    )


def _wanted(entry: Entry) -> str:
    # With 'failures', Antiphon records no request that succeeds.
    return "'failures' or 'all'" if entry.fault not in ("", "none") else "'all'"


def model_calls(recording: Recording) -> list[CallParts]:
    """Return the model calls of a recording, in order."""
    calls: list[CallParts] = []
    for part in recording.parts:
        match part.kind:
            case "call":
                calls.append(CallParts(part))
            case "head" if calls:
                calls[-1].head = part
            case "data" if calls:
                calls[-1].data.append(part)
            case "end" if calls:
                calls[-1].end = part
            case _:
                pass
    return calls


def exported(recording: Recording, entry: Entry | None = None) -> list[bytes]:
    """Return the lines of a cassette. The first line has the client's request with its answer, and the facts of
    `entry`. One line for each model call follows. Raises `InvalidRequest` if a call cannot be exported."""
    try:
        client = _client_line(recording, entry)
        calls = [_line(call, cut=recording.cut) for call in model_calls(recording)]
    except CannotRecord as error:
        raise InvalidRequest(f"This request cannot be exported: {error}", code="cannot_export") from None
    return [*client, *calls]


def _call(parts: CallParts) -> RecordedCall:
    events, more, answer = _read(parts.data)
    return RecordedCall(
        parts.begun.at,
        parts.begun.data,
        parts.begun.facts,
        path=str(parts.begun.facts.get("path", "")),
        sent_headers=_headers_of(parts.begun),
        status=parts.status,
        local=parts.local,
        head_at=parts.head.at if parts.head is not None else None,
        headers=parts.headers,
        answer=answer,
        events=events,
        more=more,
        ended=parts.end.facts if parts.end is not None else {},
        ended_at=parts.end.at if parts.end is not None else None,
    )


def _headers_of(part: Part) -> list[tuple[str, str]]:
    return [(str(name), str(value)) for name, value in part.facts.get("headers", ())]


def _client_line(recording: Recording, entry: Entry | None) -> list[bytes]:
    """Return the client's request and its answer, in the format of a cassette's model call. `antiphon replay` chooses
    model calls by their path, so it never serves this line for a chat request. The result is empty if the recording
    does not have the client's request."""
    story = tell(recording)
    if not story.path:
        return []
    sent = [(part.at, part.data) for part in recording.parts if part.kind == "event"] if story.answer_status else []
    whole = bool(story.answer_status) and any(part.kind == "finish" for part in recording.parts)
    made = make_entry(
        story.request,
        story.answer_status,
        story.answer_headers if story.answer_status else (),
        sent,
        method=story.method or "POST",
        path=story.path,
        cut=recording.cut or not whole,
    )
    return [entry_line(made, {"antiphon": _facts_of(entry)} if entry is not None else {})]


def _facts_of(entry: Entry) -> dict[str, object]:
    """Return the version of Antiphon, and the facts about a request that a bug report needs."""
    detail = entry.detail
    told = {
        "version": __version__,
        "request_id": entry.request_id or entry.id,
        "served_by": entry.door,
        "upstream": entry.upstream,
        "outcome": entry.outcome,
        "seconds": round(entry.seconds, 3),
        "ignored": list(detail.ignored),
        "fault": entry.fault,
        "code": entry.code,
        "operation": detail.operation,
        "upstream_status": detail.upstream_status,
        "message": detail.message,
        "cause": detail.cause,
    }
    return {name: value for name, value in told.items() if value}


def _line(call: CallParts, *, cut: bool) -> bytes:
    chunks = [(max(0.0, part.at - call.begun.at), part.data) for part in call.data]
    if not call.status:
        return entry_line(make_entry(call.begun.data, 0, (), (), cut=True))
    broke = (call.end is None or bool(call.end.facts.get("fault"))) and not _is_done(chunks)
    return entry_line(make_entry(call.begun.data, call.status, call.headers, chunks, cut=cut or broke))


def _is_done(chunks: list[tuple[float, bytes]]) -> bool:
    """Whether the stream ends with `[DONE]`. The exchange reads no bytes after this event."""
    return b"".join(data for _, data in chunks[-2:]).rstrip().endswith(b"[DONE]")


def _read(parts: list[Part]) -> tuple[list[RecordedEvent], int, bytes]:
    """Parse the body of an answer. For an event stream, returns the first `_MOST_EVENTS` events, and the number of the
    events that follow. For any other body, returns the whole body."""
    body = b"".join(part.data for part in parts)
    start = body.lstrip()[:6]
    if not start.startswith((b"data:", b"event:", b":", b"id:")):
        return [], 0, body
    events = list(_events(parts))
    return events[:_MOST_EVENTS], max(0, len(events) - _MOST_EVENTS), b""


def _events(parts: Iterable[Part]) -> Iterable[RecordedEvent]:
    """Split server-sent events. The time of an event is the time at which its last byte arrived. This function also
    returns comments and invalid data, which the exchange's decoder drops."""
    left = b""
    at = 0.0
    for part in parts:
        at = part.at
        *whole, left = (left + part.data).replace(b"\r\n", b"\n").split(b"\n\n")
        for block in whole:
            if block.strip():
                yield _event(at, block)
    if left.strip():
        yield _event(at, left)


def _event(at: float, block: bytes) -> RecordedEvent:
    kind, data = "", []
    for line in block.decode(errors="replace").split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif not name:
            data.append(f": {value}")
    return RecordedEvent(at, kind, "\n".join(data))
