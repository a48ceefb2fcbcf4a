"""Runs an answer through each fast path for similar chunks, and through the full reader, and compares the results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from antiphon.config.limits import LimitSettings
from antiphon.translation.answer import sse
from antiphon.translation.events import encode
from antiphon.translation.splice import Splice
from tests.support.exchanges import Outcome, run
from tests.support.splices import implementations

TOOLS = [
    {"type": "function", "name": "f", "parameters": {}},
    {"type": "custom", "name": "g"},
    {"type": "apply_patch"},
]


@contextmanager
def _spliced_by(implementation: Splice) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "splice", implementation)
        yield


@contextmanager
def _nothing_is_learned() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "_TRIES", 0)
        yield


def compared(pieces: Iterable[bytes], *, most: int = 1 << 20, hidden: bool = False, **request: Any) -> Outcome:
    """Run the answer in these chunks on every path. Returns the common outcome. `most`: the maximum bytes of output.
    `hidden`: whether the stream hides lengths."""
    pieces = list(pieces)
    limits = LimitSettings().model_copy(update={"upstream_body_bytes": most})
    hiding = {"stream_options": {"include_obfuscation": hidden}}
    asked = {"model": "m", "input": "hi", "stream": True, **hiding, **request}
    with _nothing_is_learned():
        full = run(asked, pieces, limits=limits)
    for implementation in implementations():
        with _spliced_by(implementation):
            quick = run(asked, pieces, limits=limits)
        assert quick.head == full.head
        assert quick.body == full.body
        assert quick.finish == full.finish
    return full


def delta_of(kind: str, text: str, index: int) -> dict[str, Any]:
    call: dict[str, Any] = {"index": index, "function": {"arguments": text}}
    deltas: dict[str, dict[str, Any]] = {
        "text": {"content": text},
        "texts": {"content": text, "role": "assistant", "reasoning_content": None, "tool_calls": []},
        "reasoning": {"reasoning_content": text},
        "named": {"reasoning": text, "content": ""},
        "both": {"reasoning": text, "content": text},
        "begin": {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "f", "arguments": ""}}]},
        "custom": {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": "g", "arguments": ""}}]},
        "arguments": {"tool_calls": [call]},
        "repeated": {"tool_calls": [{**call, "id": f"c{index}"}]},
        "details": {"reasoning_details": [{"type": "reasoning.text", "text": text}]},
        "refusal": {"refusal": text},
        "sound": {"audio": {"transcript": text}},
        "end": {},
    }
    return deltas[kind]
