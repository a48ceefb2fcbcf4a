"""The checks on an answer, one function for each.

Lives here: `Answer`, the answer to one request, and the checks that a scenario names. Not here: the checks of each
scenario (`scenarios.py`).

A check returns None if the answer is right, and otherwise a sentence with the problem. A check never raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.judge import fold
from tests.support.schemas import OPEN_RESPONSES, Violation, event_violations, valid

Check = Callable[["Answer"], str | None]
_TERMINAL = ("response.completed", "response.failed", "response.incomplete")


@dataclass
class Answer:
    """One HTTP answer, or one turn over WebSocket. `value` is the JSON body, or the response in the last terminal
    event."""

    status: int
    content_type: str
    body: bytes
    events: list[dict[str, Any]] = field(default_factory=list)
    value: Any = None

    @staticmethod
    def read(status: int, content_type: str, body: bytes) -> Answer:
        """Parse a body as an event stream or as JSON, according to its content type. A body that cannot be parsed gives
        None."""
        answer = Answer(status, content_type, body)
        if body.lstrip().startswith((b"event:", b"data:", b":")):
            for line in body.decode("utf-8", "replace").split("\n"):
                if line.startswith("data:") and line[5:].strip() != "[DONE]":
                    answer.events.append(_json(line[5:]) or {"type": f"not JSON: {line[:80]}"})
            last = [event for event in answer.events if event.get("type") in _TERMINAL]
            answer.value = last[-1].get("response") if last else None
        else:
            answer.value = _json(body.decode("utf-8", "replace"))
        return answer

    @staticmethod
    def turn(events: list[dict[str, Any]]) -> Answer:
        """The answer from the events that a WebSocket received for one request."""
        last = [event for event in events if event.get("type") in _TERMINAL]
        return Answer(101, "", b"", events, last[-1].get("response") if last else None)

    @property
    def output(self) -> list[dict[str, Any]]:
        """The output items, or an empty list if there are none."""
        output = self.value.get("output") if isinstance(self.value, dict) else None
        return [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def beyond(check: Check) -> Check:
    """Mark a check that the official suite does not make."""
    check.beyond = True  # type: ignore[attr-defined]
    return check


def _first(violations: list[str]) -> str | None:
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return violations[0][:240] + more if violations else None


# The checks of the official suite.


def status(*allowed: int) -> Check:
    """Check that the HTTP status is one of these."""

    def check(answer: Answer) -> str | None:
        if answer.status in allowed:
            return None
        said = answer.body[:200].decode("utf-8", "replace")
        return f"HTTP {answer.status}, not {' or '.join(map(str, allowed))}: {said}"

    return check


def response_schema(answer: Answer) -> str | None:
    """Check that the response matches the schema `ResponseResource`."""
    if not isinstance(answer.value, dict):
        return "there is no response object"
    return _first(valid(OPEN_RESPONSES, "ResponseResource", answer.value))


def compaction_schema(answer: Answer) -> str | None:
    """Check that the answer matches the schema `CompactResource`."""
    if not isinstance(answer.value, dict):
        return "there is no compaction object"
    return _first(valid(OPEN_RESPONSES, "CompactResource", answer.value))


def event_schema(answer: Answer) -> str | None:
    """Check that there are events, and that each is one of the 24 of the specification."""
    if not answer.events:
        return "there are no events"
    found: list[Violation] = []
    for event in answer.events:
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            return f"an event without a type: {json.dumps(event)[:120]}"
        found += [violation for violation in event_violations(event) if violation.schema == OPEN_RESPONSES]
    return _first([f"{violation.place}: {violation.message}" for violation in found])


def has_output(answer: Answer) -> str | None:
    """Check that the output is not empty."""
    return None if answer.output else "the output is empty"


def completed(answer: Answer) -> str | None:
    """Check that the status is `completed`."""
    found = answer.value.get("status") if isinstance(answer.value, dict) else None
    return None if found == "completed" else f"the status is {found!r}, not 'completed'"


def has_item(kind: str) -> Check:
    """Check that at least one output item has this type."""

    def check(answer: Answer) -> str | None:
        kinds = [str(item.get("type")) for item in answer.output]
        return None if kind in kinds else f"no {kind} in the output ({', '.join(kinds) or 'empty'})"

    return check


def fails(code: str | None = None) -> Check:
    """Check that the turn is refused or failed, with this code."""

    def check(answer: Answer) -> str | None:
        last = answer.events[-1] if answer.events else {}
        found = last.get("error") or (answer.value or {}).get("error")
        if not isinstance(found, dict):
            return f"the turn does not fail: it ends with {last.get('type')}"
        return None if code in (None, found.get("code")) else f"the code is {found.get('code')!r}, not {code!r}"

    return check


def phases(_: Answer) -> str | None:
    """Check that the schema of all other checks accepts a message with a phase, and refuses a phase of null."""

    def problems(phase: Any) -> list[str]:
        part = {"type": "output_text", "text": "Done.", "annotations": [], "logprobs": []}
        message = {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}
        return valid(OPEN_RESPONSES, "Message", {**message, "phase": phase})

    for phase in ("commentary", "final_answer"):
        if found := problems(phase):
            return f"{phase}: {found[0]}"
    return None if problems(None) else "a phase of null is taken"


# Further checks from the specification.


@beyond
def one_message(answer: Answer) -> str | None:
    """Check that the answer is JSON, and that its output has one assistant message with text."""
    if not answer.content_type.startswith("application/json"):
        return f"the content type is {answer.content_type!r}, not application/json"
    messages = [item for item in answer.output if item.get("type") == "message"]
    if len(messages) != 1 or messages[0].get("role") != "assistant":
        return f"{len(messages)} messages, not one of the assistant's"
    text = "".join(part.get("text", "") for part in messages[0].get("content", ()))
    return None if text else "the message is empty"


def says(word: str) -> Check:
    """Check that the answer contains this word, which shows that the model got the earlier messages."""

    @beyond
    def check(answer: Answer) -> str | None:
        text = json.dumps([item.get("content") for item in answer.output])
        return None if word in text else f"the answer does not say {word!r}: {text[:120]}"

    return check


@beyond
def strict_is_null(answer: Answer) -> str | None:
    """Check that a tool's omitted `strict` is null in the response, and that the tool has all its other keys."""
    tools = answer.value.get("tools") if isinstance(answer.value, dict) else None
    if not isinstance(tools, list) or len(tools) != 1:
        return "the tool is not echoed"
    return None if tools[0].get("strict", "absent") is None else f"'strict' is {tools[0].get('strict', 'absent')!r}"


@beyond
def framing(answer: Answer) -> str | None:
    """Check the framing: `text/event-stream`; `event:` equals the type; no `id:`; lines end in LF only; `[DONE]` comes
    once, at the end."""
    if not answer.content_type.startswith("text/event-stream"):
        return f"the content type is {answer.content_type!r}, not text/event-stream"
    text = answer.body.decode("utf-8", "replace")
    if "\r" in text:
        return "lines end in CRLF, which the official parser does not read"
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    if not text.endswith("\n\n") or not blocks or blocks[-1] != "data: [DONE]":
        return "the stream does not end with 'data: [DONE]'"
    for block in blocks[:-1]:
        lines = block.split("\n")
        data = _json(lines[-1].removeprefix("data:"))
        if len(lines) != 2 or not isinstance(data, dict) or lines[0] != f"event: {data.get('type')}":
            return f"an event that is not 'event: TYPE' and one line of data: {block[:120]!r}"
    return None


@beyond
def order(answer: Answer) -> str | None:
    """Check the order: numbers from 0 without gaps; created, in_progress, one item after the other, one terminal event.
    The terminal event must agree with the earlier events."""
    kinds = [str(event.get("type")) for event in answer.events]
    if [event.get("sequence_number") for event in answer.events] != list(range(len(kinds))):
        return "the sequence numbers are not 0, 1, 2, …"
    if kinds[:2] != ["response.created", "response.in_progress"]:
        return f"the stream begins with {kinds[:2]}"
    if [kind for kind in kinds if kind in _TERMINAL] != kinds[-1:]:
        return "there is not exactly one terminal event, at the end"
    try:
        folded = fold(answer.events)
    except (AssertionError, KeyError, TypeError) as error:
        return f"the items do not open, grow and close in order: {str(error)[:120]}"
    return None if folded == answer.output else "the terminal event's output is not what was streamed"


@beyond
def compacted(answer: Answer) -> str | None:
    """Check that a compaction item has content."""
    carried = [item.get("encrypted_content") for item in answer.output if item.get("type") == "compaction"]
    return None if carried and all(carried) else "the compaction item has no encrypted_content"
