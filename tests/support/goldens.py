"""Renders the events of a recording as a text that a reviewer can read and a test can compare.

Lives here: the text. Not here: the list of recordings (`tests/support/recordings.py`).

Consecutive deltas are one line with their joined text. Every other event is a line with its ids and status. The last
line is a digest of all bytes, so the comparison is exact although the text is short.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from antiphon.translation.profiles import PROFILES
from tests.support.exchanges import Outcome, run
from tests.support.judge import parse_sse
from tests.support.recordings import Recording

EXPECTED = Path(__file__).parents[1] / "golden" / "expected"
_SHOWN = ("item_id", "output_index", "status")


def expected_path(recording: Recording) -> Path:
    """The path of a recording's golden."""
    return EXPECTED / f"{recording.name}.txt"


def replay(recording: Recording, profile: str = "generic") -> Outcome:
    """Run the recording as the upstream's answer to a streaming request."""
    headers = (("content-type", recording.content_type or "application/json"),)
    request: dict[str, Any] = {"input": "hi", "stream": True, "model": recording.model}
    if PROFILES[profile].for_model(recording.model).logprobs:
        # The request asks for all optional parts of an answer.
        request["include"] = ["message.output_text.logprobs"]
    return run(request, [recording.body], status=recording.status, headers=headers, profile=profile)


def render(recording: Recording) -> str:
    """The golden text: the events with the generic profile, and those with the vendor's profile if they differ."""
    generic = replay(recording)
    text = _render(generic)
    if recording.provider in PROFILES:
        vendor = replay(recording, recording.provider)
        if (vendor.head, vendor.body) != (generic.head, generic.body):
            text += f"\nwith the profile {recording.provider}:\n{_render(vendor)}"
    return text


def _render(outcome: Outcome) -> str:
    assert outcome.head is not None and outcome.finish is not None
    lines = [f"HTTP {outcome.head.status} {outcome.finish.outcome}"]
    if outcome.head.streamed:
        lines += _events(parse_sse(outcome.body))
    else:
        lines.append(json.dumps(outcome.json, ensure_ascii=False))
    lines.append("sha256 " + hashlib.sha256(outcome.body).hexdigest())
    return "\n".join(lines) + "\n"


def _events(events: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    number = 0
    while number < len(events):
        event = events[number]
        kind = event["type"]
        if kind.endswith(".delta"):
            end = number
            while end < len(events) and events[end]["type"] == kind and events[end]["item_id"] == event["item_id"]:
                end += 1
            text = "".join(one["delta"] for one in events[number:end])
            lines.append(f"{kind} x{end - number} {json.dumps(text, ensure_ascii=False)}")
            number = end
            continue
        lines.append(f"{kind} {_details(event)}".rstrip())
        number += 1
    return lines


def _details(event: dict[str, Any]) -> str:
    if "item" in event:
        item = event["item"]
        shown = {key: item[key] for key in ("id", "type", "status", "name", "call_id") if key in item}
        return json.dumps(shown, ensure_ascii=False)
    if "annotation" in event:
        return json.dumps(event["annotation"], ensure_ascii=False)
    if "response" in event:
        response = event["response"]
        shown = {key: response[key] for key in ("status", "error", "incomplete_details") if response[key] is not None}
        usage = response["usage"]
        if usage is not None:
            shown["usage"] = [
                usage["input_tokens"],
                usage["input_tokens_details"]["cached_tokens"],
                usage["output_tokens"],
                usage["output_tokens_details"]["reasoning_tokens"],
                usage["total_tokens"],
            ]
        return json.dumps(shown, ensure_ascii=False)
    if event["type"] == "error":
        return json.dumps(event["error"], ensure_ascii=False)
    logprobs = event.get("logprobs")
    return f"{len(logprobs)} logprobs" if logprobs else ""
