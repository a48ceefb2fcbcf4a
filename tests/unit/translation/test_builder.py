"""The builder's own promise, whoever uses it: what was opened is closed once, before the end."""

from __future__ import annotations

from antiphon.translation.events.builder import ResponseBuilder
from antiphon.translation.events.encode import DONE
from antiphon.translation.events.response_draft import start_response
from antiphon.translation.values import BuilderOptions
from antiphon.types.items import FileSearchCall
from antiphon.types.request import CreateResponse
from tests.support.fixed import SequentialIds
from tests.support.judge import parse_sse


def test_a_tool_that_never_ended_leaves_its_item_as_it_was() -> None:
    response = start_response(CreateResponse("m", []), "resp_1", 0.0)
    builder = ResponseBuilder(response, BuilderOptions(events=True), SequentialIds())
    builder.start()
    builder.hosted(FileSearchCall(id="fs_1", status="in_progress", queries=[]))
    builder.text(b"Hi.")
    builder.close("completed")
    events = parse_sse(builder.take() + DONE)
    opened = [(event["type"], event["item"]["id"]) for event in events if "item" in event]
    message = builder.draft.output[1].id
    assert opened == [
        ("response.output_item.added", "fs_1"),
        ("response.output_item.done", "fs_1"),
        ("response.output_item.added", message),
        ("response.output_item.done", message),
    ]
    first, second = builder.draft.output
    assert isinstance(first, FileSearchCall) and (first.status, second.type) == ("in_progress", "message")
