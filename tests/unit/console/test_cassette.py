"""The recorded model calls of a request become a cassette that `antiphon replay` can read."""

from __future__ import annotations

from antiphon.console.story import exported
from antiphon.engine.ports.journal import Part, Recording
from antiphon.recordings.format import read_entries

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
            *call(4.0),
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


def test_without_an_answered_call_there_is_no_cassette() -> None:
    assert exported(Recording((Part(0.0, "request", b"{}"), *call(0.1)))) == []
