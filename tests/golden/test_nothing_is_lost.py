"""Every recording, read a second time by an independent reader: texts, calls, usage and status are the same.

Lives here: the comparison and what may differ. Not here: the second reader (`oracle.py`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.golden.oracle import Answer, read_answer
from tests.support.goldens import replay
from tests.support.judge import parse_sse
from tests.support.recordings import Recording, all_recordings

_ANSWERS = [recording for recording in all_recordings() if recording.status == 200]

_NO_FINISH = "no finish_reason: only a profile can excuse it"
_FAILS = {
    "openrouter/req_llm-openrouter-minimax-minimax-m1-object-streaming": "an answer with nothing in it",
    "openrouter/llm-test-tools-streaming-test-tools-streaming-variant-a": _NO_FINISH,
    "openrouter/llm-test-tools-streaming-test-tools-streaming-variant-b": _NO_FINISH,
    "snowflake/pydantic-test-snowflake-test-snowflake-thinking-streaming": _NO_FINISH,
}
"""Answers that fail although the server reported no error, with the reason."""
# The template of this model opens the reasoning: only its end is told, and that twice.
_OPENED = "azure/req_llm-azure-mai-ds-r1-multi-tool"


def _final(recording: Recording) -> dict[str, Any]:
    outcome = replay(recording)
    assert outcome.head is not None
    if not outcome.head.streamed:
        return {"status": "failed", "output": None, "usage": None}
    final: dict[str, Any] = parse_sse(outcome.body)[-1]["response"]
    return final


def _texts(final: dict[str, Any], kind: str) -> str:
    found = []
    for item in final["output"]:
        for part in [*(item.get("content") or ()), *(item.get("summary") or ())]:
            if part["type"] == kind:
                found.append(part.get("text", part.get("refusal")))
    return "".join(found)


def _without_tags(recording: Recording, answer: Answer) -> tuple[str, str]:
    """(reasoning, text) when the content begins with thinking."""
    if recording.name == _OPENED:
        thinking, _, text = answer.text.partition("</think>\n</think>")
        return answer.reasoning + thinking, text
    found = re.fullmatch(r"\s*<think>(.*?)(?:</think>(.*))?", answer.text, re.DOTALL)
    if found is None:
        return answer.reasoning, answer.text
    return answer.reasoning + found[1], found[2] or ""


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


@pytest.mark.parametrize("recording", _ANSWERS, ids=lambda recording: recording.name)
def test_nothing_is_lost(recording: Recording) -> None:
    answer, final = read_answer(recording), _final(recording)
    if answer.failed or recording.name in _FAILS:
        assert final["status"] == "failed"
        if final["output"] is None:
            return
    else:
        cut = {"length", "content_filter"} & set(answer.finishes)
        assert final["status"] == ("incomplete" if cut else "completed")
    reasoning, text = _without_tags(recording, answer)
    shown = _texts(final, "output_text")
    if text.startswith("{") and text != shown:
        # Cloudflare's parsed JSON.
        assert json.loads(text) == json.loads(shown)
    else:
        assert _plain(shown) == _plain(text)
    assert _plain(_texts(final, "reasoning_text")) == _plain(reasoning)
    assert _texts(final, "refusal") == answer.refusal
    calls = [[item["name"], item.get("arguments", item.get("input"))] for item in final["output"] if "call_id" in item]
    nothing = "{}" if final["status"] == "completed" else ""
    assert calls == [[name, text or nothing] for name, text in answer.calls]
    if final["status"] != "failed":
        _check_usage(final["usage"], answer.usage)


def _check_usage(usage: dict[str, Any] | None, told: dict[str, Any] | None) -> None:
    if told is None:
        assert usage is None
        return
    assert usage is not None
    assert usage["input_tokens"] == told["prompt_tokens"]
    assert usage["output_tokens"] == (told.get("completion_tokens") or 0)
    assert usage["total_tokens"] == told.get("total_tokens", usage["total_tokens"])
    details = told.get("completion_tokens_details") or {}
    assert usage["output_tokens_details"]["reasoning_tokens"] >= (details.get("reasoning_tokens") or 0)
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    assert usage["input_tokens_details"]["cached_tokens"] == (cached or told.get("cached_tokens") or cached)
