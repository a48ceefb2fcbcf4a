"""The order of a recording: each answer belongs to its call, and streams are split into events wherever parts end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.console.story import RecordedEvent, tell, why_no_contents
from antiphon.engine.ports.journal import Detail, Entry, Part, Recording

CHUNK = b'data: {"choices": []}\n\n'
EVENT = b'event: response.created\ndata: {"type": "response.created"}\n\n'


@pytest.mark.parametrize(
    ("data", "gist"),
    [
        ('{"type":"response.output_text.delta","sequence_number":3,"delta":"Hi"}', "Hi"),
        ('{"choices":[{"delta":{"content":"Hi"}}]}', "Hi"),
        ('{"type":"response.created","sequence_number":0,"response":{"id":"r"}}', '{"response":{"id":"r"}}'),
        (
            '{"id":"c","choices":[{"finish_reason":"stop"}],"usage":{"n":1}}',
            '{"choices":[{"finish_reason":"stop"}],"usage":{"n":1}}',
        ),
        ("[DONE]", "[DONE]"),
        ("[1]", "[1]"),
        ("x" * 900, "x" * 300),
        ('{"delta":"' + "y" * 900 + '"}', "y" * 300),
    ],
)
def test_the_gist_of_an_event_is_what_is_new_in_it(data: str, gist: str) -> None:
    assert RecordedEvent(0.0, "", data).gist == gist


def test_each_answer_belongs_to_its_call() -> None:
    story = tell(
        Recording(
            (
                Part(
                    0.0, "request", b"{}", {"method": "POST", "path": "/v1/responses", "headers": [["accept", "a/b"]]}
                ),
                Part(0.1, "call", b'{"n": 1}', {"upstream": "default", "path": "/chat", "headers": [["accept", "*"]]}),
                Part(0.2, "head", b"", {"status": 200, "headers": [["content-type", "text/event-stream"]]}),
                Part(0.3, "data", CHUNK),
                Part(0.4, "end", b"", {}),
                Part(0.5, "tool", b"42", {"name": "web_search"}),
                Part(0.6, "call", b'{"n": 2}', {"upstream": "default"}),
                Part(0.7, "head", b"", {"status": 503, "headers": []}),
                Part(0.8, "data", b"busy"),
                Part(0.9, "end", b"", {"fault": "cut"}),
                Part(1.0, "event_head", b"", {"status": 200}),
                Part(1.0, "event", EVENT),
                Part(1.1, "finish", b"", {}),
            ),
            cut=True,
        )
    )
    first, second = story.calls
    assert (first.body, first.status, first.head_at, len(first.events)) == (b'{"n": 1}', 200, 0.2, 1)
    assert (second.body, second.status, second.answer, second.ended) == (b'{"n": 2}', 503, b"busy", {"fault": "cut"})
    assert [tool.output for tool in story.tools] == ["42"]
    assert [event.type for event in story.events] == ["response.created"]
    assert (story.method, story.path, story.headers) == ("POST", "/v1/responses", [("accept", "a/b")])
    assert (first.path, first.sent_headers, second.sent_headers) == ("/chat", [("accept", "*")], [])
    assert story.cut and story.answer_status == 200 and story.request == b"{}"


def test_an_answer_without_events_stays_whole() -> None:
    body = b'{"id": "resp_1"}'
    story = tell(Recording((Part(0.0, "event_head", b"", {"status": 200}), Part(0.1, "event", body))))
    assert (story.answer, story.events) == (body, [])


def test_answers_without_a_call_are_left_out() -> None:
    story = tell(Recording((Part(0.0, "head", b"", {"status": 200}), Part(0.1, "data", b"x"), Part(0.2, "end"))))
    assert story.calls == []


def test_a_long_stream_names_the_events_that_it_leaves_out() -> None:
    story = tell(Recording((Part(0.0, "event", EVENT * 2005),)))
    assert (len(story.events), story.more) == (2000, 5)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        (Entry("e", "o", recorded=True, stored=True), "deleted by now"),
        (Entry("e", "o", recorded=True, ended_at=1000.0), "deleted its contents at 1970-01-01 00:31:40 UTC"),
        (
            Entry("e", "o", recorded=True, ended_at=4e9, detail=Detail(held_by="process_7")),
            "memory of the process process_7, until 2096-10-02 07:21:40 UTC",
        ),
        (Entry("e", "o", door="pass_through", fault="client"), "Antiphon answered with an error before it began"),
        (Entry("e", "o", door="pass_through", calls=1, first=0.1), "The client has received the upstream's answer."),
        (Entry("e", "o", door="pass_through", fault="upstream", calls=1), "No upstream has answered this request."),
        (Entry("e", "o", fault="client"), "Antiphon answered with an error before it began"),
        (Entry("e", "o", fault="client", detail=Detail(upstream_status=400)), "console.record_unstored"),
        (Entry("e", "o", response_id="r"), "console.record_unstored"),
        (Entry("e", "o", stored=True), "set console.record to"),
        (Entry("e", "o", stored=True, door="background", outcome="cancelled"), "so Antiphon called no model"),
        (Entry("e", "o", stored=True, door="background", outcome="cancelled", calls=1), "set console.record to"),
    ],
)
def test_missing_contents_are_explained(entry: Entry, says: str) -> None:
    assert says in why_no_contents(entry)


def test_contents_that_their_own_process_dropped_are_not_in_memory() -> None:
    entry = Entry("e", "o", recorded=True, ended_at=4e9, detail=Detail(held_by="process_7"))
    own, other = (why_no_contents(entry, process=process) for process in ("process_7", "process_8"))
    assert "at most 32 MiB" in own and "memory of" not in own
    assert "memory of the process process_7" in other and "If that process has ended" in other


@pytest.mark.parametrize(("never", "told"), [(("n:anna",), True), (("*",), True), (("n:bo",), False)])
def test_missing_contents_of_an_owner_whose_responses_are_never_stored(never: tuple[str, ...], told: bool) -> None:
    why = why_no_contents(Entry("e", "n:anna", response_id="r"), never)
    assert ("owner.store_never" in why, "console.record_unstored" in why) == (told, not told)
    assert "owner.store_never" not in why_no_contents(Entry("e", "n:anna", stored=True), never)


@given(cuts=st.lists(st.integers(0, len(EVENT) * 3), max_size=6))
def test_events_are_the_same_wherever_the_parts_end(cuts: list[int]) -> None:
    stream = EVENT * 3
    edges = sorted({0, *cuts, len(stream)})
    parts = tuple(Part(float(n), "event", stream[start:end]) for n, (start, end) in enumerate(pairwise(edges)))
    story = tell(Recording(parts))
    assert [(event.type, event.data) for event in story.events] == [
        ("response.created", '{"type": "response.created"}')
    ] * 3


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_any_bytes_are_told(pieces: list[bytes]) -> None:
    story = tell(Recording(tuple(Part(0.0, "event", piece) for piece in pieces)))
    assert story.events or story.answer or not b"".join(pieces).strip() or story.more == 0


def test_the_results_of_tools_follow_the_model_call_that_asked_for_them() -> None:
    parts = [Part(0.0, "request", b"{}")]
    for number in range(3):
        parts += [Part(number + 0.1, "call", b"{}"), Part(number + 0.2, "head", b"", {"status": 200})]
        if number < 2:
            parts.append(Part(number + 0.5, "tool", str(number).encode(), {"name": "file_search"}))
    story = tell(Recording(tuple(parts)))
    assert [[tool.output for tool in story.tools_after(number)] for number in range(3)] == [["0"], ["1"], []]
