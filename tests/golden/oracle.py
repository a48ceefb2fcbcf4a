"""What a recording says, read a second time in the plainest way, so that nothing can be lost or invented unnoticed.

Lives here: an independent reading of a recorded answer, by `json.loads` and lists. Not here: the comparison
(`test_nothing_is_lost.py`). Nothing of `antiphon` is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.support.recordings import Recording


@dataclass
class Answer:
    """The first choice: its texts, its calls as (name, arguments), and the last usage that was told."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    calls: list[list[str]] = field(default_factory=list)
    finishes: list[str] = field(default_factory=list)
    usage: dict[str, Any] | None = None
    failed: bool = False


def read_answer(recording: Recording) -> Answer:
    """Read a recording with status 200."""
    answer = Answer()
    keys: list[tuple[Any, str]] = []
    body = recording.body.decode()
    if body.lstrip().startswith("{"):
        _read_chunk(answer, keys, json.loads(body), "message")
    else:
        for block in re.split(r"\r?\n\r?\n", body):
            data = "\n".join(line[5:].lstrip() for line in block.splitlines() if line.startswith("data:"))
            if data and data.strip() != "[DONE]":
                _read_chunk(answer, keys, json.loads(data), "delta")
    return answer


def _read_chunk(answer: Answer, keys: list[tuple[Any, str]], chunk: dict[str, Any], where: str) -> None:
    """`where`: the key of what is new (Perplexity has both keys in both kinds of answers)."""
    answer.failed |= bool(chunk.get("error"))
    usage = chunk.get("usage") or (chunk.get("x_groq") or {}).get("usage")
    if usage and usage.get("prompt_tokens") is not None:
        answer.usage = usage
    for choice in chunk.get("choices") or ():
        if choice.get("index"):
            continue
        answer.failed |= bool(choice.get("error"))
        if choice.get("finish_reason"):
            answer.finishes.append(choice["finish_reason"])
        if (choice.get("finish_details") or {}).get("type") == "max_tokens":
            answer.finishes.append("length")
        delta = choice.get(where) or {}
        _read_content(answer, delta.get("content"))
        answer.reasoning += delta.get("reasoning_content") or delta.get("reasoning") or _details(delta)
        answer.refusal += delta.get("refusal") or ""
        if not delta.get("content") and delta.get("audio"):
            answer.text += delta["audio"].get("transcript") or ""
        for number, call in enumerate(delta.get("tool_calls") or ()):
            _read_call(answer, keys, number if where == "message" else call.get("index"), call)
        if (delta.get("function_call") or {}).get("name"):
            _read_call(answer, keys, 0, {"function": delta["function_call"]})


def _read_content(answer: Answer, content: Any) -> None:
    if isinstance(content, dict):
        answer.text += json.dumps(content)
    for part in [content] if isinstance(content, str) else content if isinstance(content, list) else ():
        if isinstance(part, str):
            answer.text += part
        elif part["type"] == "thinking":
            answer.reasoning += "".join(inner["text"] for inner in part["thinking"])
        elif part["type"] == "text":
            answer.text += part["text"]


def _details(delta: dict[str, Any]) -> str:
    details = delta.get("reasoning_details") or ()
    return "".join(str(detail.get("text") or detail.get("summary") or "") for detail in details)


def _read_call(answer: Answer, keys: list[tuple[Any, str]], index: Any, call: dict[str, Any]) -> None:
    """A delta belongs to the last call with its index, unless it has an id of its own."""
    function = call.get("function") or call.get("custom") or {}
    name = function.get("name") or ""
    given = str(call.get("id") or "")
    place = next((at for at in range(len(keys) - 1, -1, -1) if index is None or keys[at][0] == index), None)
    is_new = place is None or bool(given and keys[place][1] and given != keys[place][1])
    # Without an index, each that has a name is a call.
    if is_new or (index is None and name):
        keys.append((index, given))
        answer.calls.append([name, ""])
        place = len(keys) - 1
    assert place is not None
    text = function.get("arguments", function.get("input"))
    answer.calls[place][1] += json.dumps(text) if isinstance(text, dict) else text or ""
