"""Recorded answers of real chat servers, sent in awkward pieces through a real Envoy, in relay and in drive.

The client must get what the core makes of the same bytes without any transport.
"""

from __future__ import annotations

import json

import pytest

from tests.e2e.conftest import Setup
from tests.support.chat_server import Raw, answer
from tests.support.exchanges import run
from tests.support.gateway import post
from tests.support.judge import check_stream, parse_sse
from tests.support.recordings import Recording, all_recordings, cut

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def _chosen() -> list[Recording]:
    """Two streams of each provider, the smallest and the largest."""
    providers: dict[str, list[Recording]] = {}
    for recording in all_recordings():
        if recording.stream and recording.status == 200 and len(recording.body) < 60_000:
            providers.setdefault(recording.name.split("/")[0], []).append(recording)
    chosen = []
    for found in providers.values():
        found.sort(key=lambda recording: len(recording.body))
        chosen += found[:1] + found[-1:] if len(found) > 1 else found
    return chosen


def test_there_are_enough() -> None:
    assert len({recording.name.split("/")[0] for recording in _chosen()}) >= 20


@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("recording", _chosen(), ids=lambda recording: recording.name)
async def test_through_a_real_gateway(recording: Recording, setup: Setup) -> None:
    request = {"model": "m", "input": "hi", "stream": True}
    headers = [("content-type", recording.content_type)]
    # Each piece is a chunk of its own on the wire, so that pieces end anywhere: in lines, in characters.
    pieces = list(cut(recording.body, "recut-1"))
    setup.server.script(answer(200, headers, pieces))
    answered = await post(setup.gateway.base_url + "/responses", request)
    expected = run(request, [recording.body], headers=tuple(headers))
    assert expected.head is not None
    assert answered.status == expected.head.status
    if answered.status != 200:
        assert json.loads(answered.body) == expected.json
        return
    got, want = parse_sse(answered.body), parse_sse(expected.body)
    check_stream(got)
    assert [(one["type"], one.get("delta")) for one in got] == [(one["type"], one.get("delta")) for one in want]
    assert got[-1]["response"]["usage"] == want[-1]["response"]["usage"]


@pytest.mark.asyncio(loop_scope="session")
async def test_a_character_cut_in_the_middle(setup: Setup) -> None:
    body = 'data: {"choices":[{"delta":{"content":"größer 🎈"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'.encode()
    framed = b"".join(b"1\r\n%b\r\n" % body[at : at + 1] for at in range(len(body))) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    setup.server.script(answer(parts=[Raw(head + framed)], framing="none"))
    answered = await post(setup.gateway.base_url + "/responses", {"model": "m", "input": "hi", "stream": True})
    assert check_stream(parse_sse(answered.body))["output"][0]["content"][0]["text"] == "größer 🎈"
