"""The recorded model calls of a request become a cassette that `antiphon replay` can read."""

from __future__ import annotations

import json

from antiphon.console.story import exported
from antiphon.engine.ports.journal import Entry, Part, Recording
from antiphon.recordings.format import CHAT_PATH, read_entries
from antiphon.recordings.matching import Playlist

HEADERS = [["content-type", "text/event-stream"], ["x-request-id", "up_1"]]
FIRST = b'data: {"choices": []}\n\n'
LAST = b"data: [DONE]\n\n"


def call(at: float, *parts: Part, body: bytes = b'{"model": "qwen3", "messages": []}') -> tuple[Part, ...]:
    return (Part(at, "call", body, {"upstream": "default"}), *parts)


def test_each_answered_call_is_an_entry_with_its_times() -> None:
    recording = Recording(
        (
            Part(0.0, "request", b"{}"),
            *call(
                1.0,
                Part(1.5, "head", b"", {"status": 200, "headers": HEADERS}),
                Part(1.6, "data", FIRST),
                Part(2.0, "data", LAST),
                Part(2.0, "end"),
            ),
            Part(2.1, "tool", b"42", {"name": "add"}),
            *call(
                3.0, Part(3.1, "head", b"", {"status": 429, "headers": []}), Part(3.1, "data", b"{}"), Part(3.1, "end")
            ),
        )
    )
    first, second = read_entries(b"".join(exported(recording)))
    assert (first.status, first.body, first.cut) == (200, FIRST + LAST, False)
    assert [round(seconds, 3) for seconds, _ in first.chunks] == [0.6, 1.0]
    assert (second.status, second.body) == (429, b"{}")


def test_a_call_that_broke_is_cut() -> None:
    head = Part(0.1, "head", b"", {"status": 200, "headers": HEADERS})
    broke = Recording(call(0.0, head, Part(0.2, "data", FIRST), Part(0.3, "end", b"", {"fault": "cut"})))
    open_ended = Recording(call(0.0, head, Part(0.2, "data", FIRST)))
    done = Recording(call(0.0, head, Part(0.2, "data", FIRST), Part(0.3, "data", LAST)))
    assert [read_entries(b"".join(exported(one)))[0].cut for one in (broke, open_ended, done)] == [True, True, False]


def test_a_call_without_an_answer_is_an_entry_without_a_status() -> None:
    local = {"status": 503, "headers": [["x-antiphon-local-reply", "upstream:x"], ["content-type", "text/plain"]]}
    local_reply = (Part(0.1, "head", b"", local), Part(0.1, "data", b"upstream connect error"), Part(0.2, "end"))
    for answer in ((), (Part(0.2, "end", b"", {"fault": "timed_out"}),), local_reply):
        (entry,) = read_entries(b"".join(exported(Recording((Part(0.0, "request", b"{}"), *call(0.1, *answer))))))
        assert (entry.status, entry.cut, entry.chunks, entry.model) == (0, True, (), "qwen3"), answer


def test_without_a_call_and_a_path_there_is_no_cassette() -> None:
    assert exported(Recording((Part(0.0, "request", b"{}"),))) == []


def test_the_first_entry_is_the_exchange_with_the_client() -> None:
    asked = Part(0.0, "request", b'{"model": "m", "input": "hi"}', {"method": "POST", "path": "/v1/responses"})
    head = Part(0.1, "event_head", b"", {"status": 502, "headers": [["content-type", "application/json"]]})
    recording = Recording((asked, *call(0.1), head, Part(0.2, "event", b'{"error": {}}'), Part(0.2, "finish")))
    told = Entry("e", "n:anna", request_id="req_1", fault="upstream", code="upstream_unreachable")
    first, *calls = exported(recording, told)
    client, unanswered = read_entries(b"".join((first, *calls)))
    assert (client.path, client.model, client.status, client.body) == ("/v1/responses", "m", 502, b'{"error": {}}')
    assert not client.cut and unanswered.status == 0
    facts = json.loads(first)["antiphon"]
    assert facts["code"] == "upstream_unreachable" and facts["request_id"] == "req_1" and facts["version"]
    assert "n:anna" not in first.decode() and "antiphon" not in json.loads(calls[0])


def test_the_entry_of_the_client_changes_no_replayed_chat_request() -> None:
    asked = Part(0.0, "request", b'{"model": "m"}', {"method": "POST", "path": "/v1/responses"})
    answer = (Part(0.2, "head", b"", {"status": 200, "headers": HEADERS}), Part(0.3, "data", LAST), Part(0.4, "end"))
    recording = Recording((asked, *call(0.1, *answer, body=b'{"model": "m"}')))
    played = Playlist(read_entries(b"".join(exported(recording))))
    for _ in range(2):
        found = played.take("POST", CHAT_PATH, b'{"model": "m"}')
        assert found is not None and found[1].body == LAST


def test_a_client_that_left_got_a_cut_answer() -> None:
    asked = Part(0.0, "request", b"{}", {"method": "POST", "path": "/v1/responses"})
    head = Part(0.1, "event_head", b"", {"status": 200, "headers": HEADERS})
    (client,) = read_entries(b"".join(exported(Recording((asked, head, Part(0.2, "event", FIRST))))))
    assert (client.status, client.cut, client.body) == (200, True, FIRST)
    (client,) = read_entries(b"".join(exported(Recording((asked,)))))
    assert (client.status, client.cut) == (0, True)
