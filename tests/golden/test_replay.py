"""Every recorded answer of a real chat server, replayed whole, byte by byte and re-cut.

It must never raise, must always fold to a response that is valid against the published schema, must number events
without gaps, and the cut must not matter.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.exchanges import Outcome, run
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.recordings import Recording, all_recordings, cut

_RECORDINGS = all_recordings()
_CUTS = ("whole", "network", "recut-1", "recut-2")


def _replay(recording: Recording, how: str, *, stream: bool, **request: Any) -> Outcome:
    return run(
        {"model": "m", "input": "hi", "stream": stream, **request},
        cut(recording.body, how, recording.reads),
        status=recording.status,
        headers=(("content-type", recording.content_type or "application/json"),),
    )


@pytest.mark.parametrize("recording", _RECORDINGS, ids=lambda recording: recording.name)
def test_replay(recording: Recording) -> None:
    """A streaming client gets the same bytes whatever the cut, and they are a valid stream or an HTTP error."""
    outcomes = [_replay(recording, how, stream=True) for how in _CUTS]
    first = outcomes[0]
    assert first.head is not None and first.finish is not None
    for outcome in outcomes[1:]:
        assert outcome.head == first.head
        assert outcome.body == first.body
    if not first.head.streamed:
        error = first.json["error"]
        assert set(error) - {"request_id"} == {"message", "type", "param", "code"} and error["message"]
        assert first.head.status >= 400
        return
    final = check_stream(parse_sse(first.body))
    assert [record.id for record in first.records] == [final["id"]]
    stored = json.loads(first.records[0].body)
    assert {**stored, "output": final["output"]} == final


def _byte_by_byte() -> Iterator[Any]:
    """Recordings that are not too long; the quick tier takes the first few of each provider."""
    seen: defaultdict[str, int] = defaultdict(int)
    for recording in _RECORDINGS:
        if len(recording.body) < 40_000:
            seen[recording.provider] += 1
            yield pytest.param(recording, marks=[pytest.mark.full] if seen[recording.provider] > 3 else [])


@pytest.mark.parametrize("recording", list(_byte_by_byte()), ids=lambda recording: recording.name)
def test_byte_by_byte(recording: Recording) -> None:
    whole, single = (_replay(recording, how, stream=True) for how in ("whole", "bytes"))
    assert (single.head, single.body) == (whole.head, whole.body)


@pytest.mark.parametrize("recording", _RECORDINGS, ids=lambda recording: recording.name)
def test_json_is_the_fold(recording: Recording) -> None:
    """A JSON client gets what a streaming client's events fold to, for the same upstream bytes."""
    streamed = _replay(recording, "whole", stream=True)
    single = _replay(recording, "whole", stream=False)
    assert single.head is not None and streamed.head is not None
    if single.head.status != 200:
        assert not streamed.head.streamed or parse_sse(streamed.body)[-1]["type"] == "response.failed"
        return
    check_response(single.json)
    if streamed.head.streamed:
        assert single.json == parse_sse(streamed.body)[-1]["response"]


@pytest.mark.parametrize("recording", _RECORDINGS, ids=lambda recording: recording.name)
def test_outcome_is_the_recorded_one(recording: Recording) -> None:
    """An answer the server finished is completed or incomplete; an error is an error, never a success."""
    outcome = _replay(recording, "whole", stream=True)
    assert outcome.finish is not None
    body = recording.body.decode()
    if recording.status != 200:
        assert outcome.finish.outcome == "error"
    elif '"finish_reason":"stop"' in body.replace(" ", "") and '"error":{' not in body.replace(" ", ""):
        assert outcome.finish.outcome == "completed", outcome.body[-600:]


@pytest.mark.parametrize("summary", ["auto", None])
def test_reasoning_has_both_forms(summary: str | None) -> None:
    """Reasoning text is summary when the request asks for summaries, else content."""
    recording = next(item for item in _RECORDINGS if "streamed-reasoning-content" in item.name)
    outcome = _replay(recording, "whole", stream=True, reasoning={"summary": summary})
    final = check_stream(parse_sse(outcome.body))
    reasoning = final["output"][0]
    assert reasoning["type"] == "reasoning"
    assert bool(reasoning["summary"]) is (summary is not None)
    assert bool(reasoning.get("content")) is (summary is None)
