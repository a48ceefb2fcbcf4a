"""A recording has the bytes of both sides, however the upstream's answer is cut and however fast it comes."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from antiphon.config.operators import ConsoleSettings
from antiphon.engine.ports.actions import RequestHead
from tests.support.exchanges import JSON, SSE, Outcome, exchange_options, pump
from tests.support.fixed import SequentialIds, fixed_clock
from tests.support.journal import joined, recording_exchange

_TEXT = st.text(max_size=8)


def _answer(texts: list[str], *, stream: bool) -> bytes:
    if not stream:
        return json.dumps({"choices": [{"message": {"content": "".join(texts)}, "finish_reason": "stop"}]}).encode()
    chunks = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


@given(
    st.lists(_TEXT, max_size=8),
    st.lists(st.integers(0, 2000), max_size=8),
    st.lists(st.sampled_from([0.0, 0.001, 0.02, 0.06, 1.0]), min_size=1, max_size=5),
    st.booleans(),
)
def test_the_recorded_bytes_are_those_of_the_upstream_and_of_the_client(
    texts: list[str], places: list[int], pauses: list[float], stream: bool
) -> None:
    now = itertools.accumulate(itertools.cycle(pauses))
    console = ConsoleSettings(record="all")
    exchange = recording_exchange(console, exchange_options(), SequentialIds(), fixed_clock, ticks=lambda: next(now))
    body = json.dumps({"model": "m", "input": "x", "stream": stream}).encode()
    outcome, answer = Outcome(), _answer(texts, stream=stream)
    exchange.receive_request(RequestHead("POST", "/v1/responses", (), "owner"), body)
    pump(exchange, outcome)
    exchange.receive_upstream_head(200, SSE if stream else JSON)
    pump(exchange, outcome)
    marks = sorted({0, len(answer), *(place % (len(answer) + 1) for place in places)})
    for start, end in itertools.pairwise(marks):
        exchange.receive_upstream_data(answer[start:end])
        pump(exchange, outcome)
    exchange.receive_upstream_end()
    pump(exchange, outcome)
    assert exchange.parts is not None and exchange.done
    recording = exchange.parts.whole(0.0)
    assert joined(recording, "data") == answer and joined(recording, "event") == outcome.body
    assert joined(recording, "request") == body and joined(recording, "call") == outcome.calls[0].request.body
    assert [part.at for part in recording.parts] == sorted(part.at for part in recording.parts)
    assert [part.kind for part in recording.parts].count("finish") == 1
