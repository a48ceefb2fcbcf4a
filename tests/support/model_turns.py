"""Builds a chat model's answer of one turn, with text and calls, as a stream or as JSON.

Lives here: building the bytes of the answer. Not here: sending the answer (`exchanges.py`, `chat_server.py`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Called = tuple[str, str]
"""A function's name in the chat request, and the arguments as the model wrote them."""

USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def model_turn(
    text: str = "", *calls: Called, stream: bool, pieces: int = 1, prefix: str = "call", reasoning: str = ""
) -> bytes:
    """One answer of a chat model. `pieces`: the minimum number of deltas for the text and for the arguments."""
    made = [
        {"index": number, "id": f"{prefix}_{number}", "type": "function", "function": {"name": name, "arguments": said}}
        for number, (name, said) in enumerate(calls)
    ]
    finish = "tool_calls" if calls else "stop"
    if not stream:
        message: dict[str, Any] = {"role": "assistant", "content": text or None, "tool_calls": made or None}
        if reasoning:
            message["reasoning_content"] = reasoning
        whole = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
        return json.dumps(whole).encode()
    deltas: list[dict[str, Any]] = [{"reasoning_content": part} for part in _cut(reasoning, pieces)]
    deltas += [{"content": part} for part in _cut(text, pieces)]
    for call, (_, said) in zip(made, calls, strict=True):
        first, *rest = _cut(said, pieces) or [""]
        deltas.append({"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": first}}]})  # type: ignore[index]
        deltas += [{"tool_calls": [{"index": call["index"], "function": {"arguments": part}}]} for part in rest]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}, {"choices": [], "usage": USAGE}]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"


def _cut(text: str, pieces: int) -> Sequence[str]:
    size = max(1, len(text) // pieces)
    return [text[at : at + size] for at in range(0, len(text), size)]
