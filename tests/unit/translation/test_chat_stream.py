"""What chunks lead to: tool calls in every order, usage in every place, endings, errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.translation.answer.sse import EventTooLarge, SseDecoder
from antiphon.translation.answer.upstream_errors import as_event_failure, map_upstream_answer, read_stream_error
from tests.support.exchanges import limits, run
from tests.support.judge import check_stream, parse_sse


def _final(*chunks: dict[str, Any], finish: str | None = "stop", done: bool = True, **options: Any) -> dict[str, Any]:
    ends: list[dict[str, Any]] = [{"choices": [{"delta": {}, "finish_reason": finish}]}] if finish else []
    body = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (*chunks, *ends))
    outcome = run(
        {"model": "m", "input": "hi", "stream": True}, [body + (b"data: [DONE]\n\n" if done else b"")], **options
    )
    return check_stream(parse_sse(outcome.body))


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def _calls(*calls: dict[str, Any]) -> dict[str, Any]:
    return _delta(tool_calls=list(calls))


def _part(arguments: str | None = None, name: str | None = None, **call: Any) -> dict[str, Any]:
    function: dict[str, Any] = {}
    if arguments is not None:
        function["arguments"] = arguments
    if name is not None:
        function["name"] = name
    return {**call, "function": function}


def _made(final: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (item["call_id"], item["name"], item["arguments"])
        for item in final["output"]
        if item["type"] == "function_call"
    ]


@pytest.mark.parametrize(
    ("chunks", "made"),
    [
        # In turn, as OpenAI sends them; the id and name only once.
        (
            [
                _calls(_part("", "f", index=0, id="a")),
                _calls(_part('{"x"', index=0)),
                _calls(_part(":1}", index=0)),
                _calls(_part("{}", "g", index=1, id="b")),
            ],
            [("a", "f", '{"x":1}'), ("b", "g", "{}")],
        ),
        # Interleaved.
        (
            [
                _calls(_part('{"x"', "f", index=0, id="a"), _part('{"y"', "g", index=1, id="b")),
                _calls(_part(":1}", index=0)),
                _calls(_part(":2}", index=1)),
            ],
            [("a", "f", '{"x":1}'), ("b", "g", '{"y":2}')],
        ),
        # Begun together, without arguments at first.
        (
            [
                _calls(_part("", "f", index=0, id="a"), _part("", "g", index=1, id="b")),
                _calls(_part("{}", index=1)),
                _calls(_part("{}", index=0)),
            ],
            [("a", "f", "{}"), ("b", "g", "{}")],
        ),
        # Without an index; the id tells them apart.
        ([_calls(_part("{}", "f", id="a"), _part("{}", "g", id="b"))], [("a", "f", "{}"), ("b", "g", "{}")]),
        # The same index with a new id and name each time.
        (
            [_calls(_part("{}", "f", index=0, id="a")), _calls(_part("{}", "g", index=0, id="b"))],
            [("a", "f", "{}"), ("b", "g", "{}")],
        ),
        # null, "" and repetitions instead of absent.
        (
            [
                _calls(_part("{", "f", index=0, id="a")),
                _calls(_part("}", "", index=0, id="")),
                _calls(_part("", "f", index=0, id="a")),
            ],
            [("a", "f", "{}")],
        ),
        # The name comes after the arguments.
        ([_calls(_part("{", index=0, id="a")), _calls(_part("}", "f", index=0))], [("a", "f", "{}")]),
        # The whole call again at its end.
        (
            [_calls(_part('{"x":1}', "f", index=0, id="a")), _calls(_part('{"x":1}', "f", index=0, id="a"))],
            [("a", "f", '{"x":1}')],
        ),
        # Without an index, in pieces: the last call goes on, by its id or by nothing at all.
        (
            [
                _calls(_part('{"x"', "f", id="a")),
                _calls(_part(":1", id="a")),
                _calls(_part("}")),
                _calls(_part("{}", "g", id="b")),
            ],
            [("a", "f", '{"x":1}'), ("b", "g", "{}")],
        ),
        # Without ids, all of the same index: another name, or other arguments, begin another call.
        (
            [
                _calls(_part('{"x":1}', "f", index=0)),
                _calls(_part("{}", "g", index=0)),
                _calls(_part('{"y":2}', "g", index=0)),
                _calls(_part('{"y":2}', "g", index=0)),
            ],
            [("call_1", "f", '{"x":1}'), ("call_2", "g", '{"y":2}')],
        ),
        # No arguments at all.
        ([_calls(_part(None, "f", index=0, id="a"))], [("a", "f", "{}")]),
        # Arguments as an object.
        ([_calls({"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}})], [("a", "f", '{"x":1}')]),
        # The legacy form.
        ([_delta(function_call={"name": "f", "arguments": "{}"})], [("call_1", "f", "{}")]),
        # Without ids, or twice the same one: ids of ours.
        ([_calls(_part("{}", "f", index=0, id=""))], [("call_1", "f", "{}")]),
        (
            [_calls(_part("{}", "f", index=0, id="a")), _calls(_part("{}", "g", index=1, id="a"))],
            [("a", "f", "{}"), ("call_1", "g", "{}")],
        ),
    ],
)
def test_tool_calls(chunks: list[dict[str, Any]], made: list[tuple[str, str, str]]) -> None:
    final = _final(*chunks, finish="tool_calls")
    assert final["status"] == "completed" and _made(final) == made
    assert _final(*chunks, finish="stop")["status"] == "completed"


def test_a_call_without_a_name_is_no_success() -> None:
    assert _final(_calls(_part("{}", index=0, id="a")))["status"] == "failed"


def test_arguments_after_the_call_had_ended_are_no_success() -> None:
    late = [_calls(_part("{}", "f", index=0, id="a")), _delta(content="text"), _calls(_part("{}{}", index=0))]
    assert _final(*late)["status"] == "failed"


@pytest.mark.parametrize(
    ("delta", "types"),
    [
        ({"content": ""}, ["message"]),
        ({"content": None, "reasoning_content": "r"}, ["reasoning"]),
        ({"content": "", "reasoning": "r"}, ["reasoning"]),
        ({"reasoning_content": "r", "reasoning": "r"}, ["reasoning"]),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "r"}]}, ["reasoning"]),
        ({"reasoning_content": "r", "content": "c"}, ["reasoning", "message"]),
        ({"refusal": "no"}, ["message"]),
        ({"refusal": "", "content": "c"}, ["message"]),
        ({"content": [{"type": "thinking", "thinking": [{"text": "r"}]}, {"type": "text", "text": "c"}]}, None),
        ({"content": {"a": 1}}, ["message"]),
    ],
)
def test_items(delta: dict[str, Any], types: list[str] | None) -> None:
    final = _final(_delta(**delta))
    assert [item["type"] for item in final["output"]] == (types or ["reasoning", "message"])


def test_blanks_open_no_message() -> None:
    final = _final(_delta(content="\n\n"), _delta(reasoning="r"), _delta(content="c"))
    assert [item["type"] for item in final["output"]] == ["reasoning", "message"]
    assert final["output"][1]["content"][0]["text"] == "\n\nc"
    assert _final(_delta(content=" \n"))["output"][0]["content"][0]["text"] == " \n"


@pytest.mark.parametrize(
    ("finish", "status", "reason"),
    [
        ("stop", "completed", None),
        ("eos", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_endings(finish: str, status: str, reason: str | None) -> None:
    final = _final(_delta(content="c"), finish=finish)
    assert final["status"] == status and (final["incomplete_details"] or {}).get("reason") == reason
    assert final["output"][-1]["status"] == status
    assert (final["completed_at"] is None) is (status != "completed")


def test_of_two_finish_chunks_the_cut_counts() -> None:
    last = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    assert _final(_delta(content="c"), last)["status"] == "incomplete"


def test_an_end_without_a_finish_is_judged_by_the_profile() -> None:
    assert _final(_delta(content="c"), finish=None)["error"]["code"] == "upstream_cut"
    assert _final(_delta(content="c"), finish=None, profile="snowflake")["status"] == "completed"
    assert _final(finish=None, profile="snowflake")["error"]["code"] == "upstream_empty"
    cut = _final(_delta(content="c"), finish=None, done=False, profile="snowflake")
    assert cut["error"]["code"] == "upstream_cut"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, (3, 4, 9, 0, 0, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4}, (3, 4, 7, 0, 0, 0)),
        (
            {
                "prompt_tokens": 3,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            (3, 4, 7, 2, 1, 3),
        ),
        ({"prompt_tokens": 3, "completion_tokens": 4, "prompt_tokens_details": None}, (3, 4, 7, 0, 0, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "prompt_cache_hit_tokens": 2}, (3, 4, 7, 2, 0, 0)),
        ({"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 1, "reasoning_tokens": 2}, (3, 4, 7, 1, 0, 2)),
        ({"prompt_tokens": 3.0, "completion_tokens": None}, (3, 0, 3, 0, 0, 0)),
    ],
)
def test_usage(usage: dict[str, Any], counts: tuple[int, ...]) -> None:
    for chunk in ({"choices": [], "usage": usage}, {"choices": [], "x_groq": {"usage": usage}}):
        found = _final(_delta(content="c"), chunk)["usage"]
        assert counts == (
            found["input_tokens"],
            found["output_tokens"],
            found["total_tokens"],
            found["input_tokens_details"]["cached_tokens"],
            found["input_tokens_details"]["cache_write_tokens"],
            found["output_tokens_details"]["reasoning_tokens"],
        )


def test_usage_after_the_finish_and_none_at_all() -> None:
    chunks = [_delta(content="c"), {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
    last = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    assert _final(*chunks, last, finish=None)["usage"]["total_tokens"] == 3
    assert _final(*chunks, finish=None)["usage"] is None
    assert _final(*chunks, {"choices": [], "usage": {}}, finish=None)["usage"] is None


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b'{"error":{"message":"m","code":"tool_use_failed"}}', "tool_use_failed", "m"),
        (b'{"error":{"message":"m","code":429}}', "rate_limit_exceeded", "m"),
        (b'{"error":{"message":"m","type":"rate_limit_error"}}', "rate_limit_exceeded", "m"),
        (b'{"error":"m"}', "server_error", "m"),
        (b"nonsense", "server_error", "The upstream reported an error."),
    ],
)
def test_errors_in_a_stream(body: bytes, code: str, message: str) -> None:
    assert as_event_failure(read_stream_error(body)) == (code, message)


@pytest.mark.parametrize(
    ("status", "body", "shown", "code", "param"),
    [
        (404, b'{"error":{"message":"model x not found"}}', 404, "model_not_found", "model"),
        (404, b"page not found", 502, "upstream_misconfigured", None),
        (400, b'{"error":{"message":"maximum context length is 5"}}', 400, "context_length_exceeded", "input"),
        (422, b'{"detail":[{"msg":"bad"}]}', 422, None, None),
        (429, b"", 429, "rate_limit_exceeded", None),
        (500, b"<html>", 500, "upstream_error", None),
        (529, b"{}", 503, "server_is_overloaded", None),
        (302, b"", 502, "upstream_error", None),
        (
            503,
            b"upstream connect error or disconnect/reset before headers. reset reason: x",
            502,
            "upstream_unreachable",
            None,
        ),
        (
            503,
            b"upstream connect error or disconnect/reset before headers. reset reason: connection termination",
            502,
            "upstream_cut",
            None,
        ),
        (
            503,
            b"upstream connect error or disconnect/reset before headers. retried and the latest reset reason: "
            b"connection termination",
            502,
            "upstream_cut",
            None,
        ),
        (
            503,
            b"upstream connect error or disconnect/reset before headers. reset reason: remote connection failure",
            502,
            "upstream_unreachable",
            None,
        ),
        (504, b"upstream request timeout", 504, "upstream_timeout", None),
    ],
)
def test_errors_instead_of_an_answer(status: int, body: bytes, shown: int, code: str | None, param: str | None) -> None:
    error = map_upstream_answer(status, (("retry-after", "5"), ("set-cookie", "x")), body)
    assert (error.status, error.code, error.param) == (shown, code, param)
    assert "cookie" not in str(error.headers) and error.message


def test_credentials_in_an_upstreams_message_are_cut_out() -> None:
    error = map_upstream_answer(401, (), b'{"error":{"message":"Incorrect API key provided: sk-abcdefghijkl. Bye"}}')
    assert error.message == "Incorrect API key provided: [redacted] Bye" or "sk-abc" not in error.message


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [(b"", b"a")]),
        (b"data:a\r\rdata: b\r\n\r\n", [(b"", b"a"), (b"", b"b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [(b"", b"a")]),
        (b": comment\nevent: e\ndata: a\ndata: b\nid: 3\nretry: 4\n\n", [(b"e", b"a\nb")]),
        (b"event: e\n\ndata: a\n\n", [(b"", b"a")]),
        (b"data: a", [(b"", b"a")]),
        (b" data: a\n\n", [(b"", b"a")]),
        (b'error: {"x":1}\n', [(b"error", b'{"x":1}')]),
        (b"data\n\n", [(b"", b"")]),
    ],
)
def test_event_streams(stream: bytes, events: list[tuple[bytes, bytes]]) -> None:
    decoder = SseDecoder(100)
    assert [(one.type, one.data) for one in decoder.feed(stream) + decoder.close()] == events


@pytest.mark.parametrize("stream", [b"x" * 101, b"data: " + b"x" * 101 + b"\n", b"data: 1234567890\n" * 11])
def test_an_event_has_a_limit(stream: bytes) -> None:
    with pytest.raises(EventTooLarge):
        SseDecoder(100).feed(stream)


def test_a_byte_order_mark_before_a_whole_answer_is_passed_over() -> None:
    body = "\ufeff" + json.dumps({"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]})
    outcome = run({"model": "m", "input": "hi"}, [body.encode()], headers=(("content-type", "application/json"),))
    assert outcome.json["output"][0]["content"][0]["text"] == "x"


@pytest.mark.parametrize(
    ("deltas", "counted", "expected"),
    [
        # By its share of what was written: 30 of 40 letters.
        ([{"reasoning_content": "r" * 30}, {"content": "t" * 10}], None, 75),
        ([{"reasoning_content": "r" * 30}, {"content": "t" * 10}], 0, 75),
        # The server's count is not touched.
        ([{"reasoning_content": "r" * 30}, {"content": "t" * 10}], 9, 9),
        ([{"reasoning_content": "r" * 30}], None, 100),
        ([{"content": "t" * 10}], None, 0),
        ([{"reasoning_content": "r" * 25}, _part('{"a":' + "1" * 69 + "}", "f", index=0, id="a")], None, 25),
    ],
)
def test_reasoning_that_the_server_does_not_count_is_estimated(
    deltas: list[dict[str, Any]], counted: int | None, expected: int
) -> None:
    usage: dict[str, Any] = {"prompt_tokens": 1, "completion_tokens": 100, "total_tokens": 101}
    if counted is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": counted}
    chunks = [_calls(delta) if "function" in delta else _delta(**delta) for delta in deltas]
    final = _final(*chunks, {"choices": [], "usage": usage})
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": expected}
    assert final["usage"]["output_tokens"] == 100


def test_a_stream_of_events_that_are_no_json_ends() -> None:
    """Each is small and costs more than a good one: without an end a few such streams would starve everybody."""
    strays = b"event: foo\ndata: x\n\n" * 600
    text = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    outcome = run({"model": "m", "input": "hi", "stream": True}, [strays, text, strays, strays])
    final = check_stream(parse_sse(outcome.body))
    assert final["status"] == "failed" and "1000" in final["error"]["message"]


def test_some_events_that_are_no_json_are_passed_over() -> None:
    strays = b"data: ping\n\n" * 900
    text = b'data: {"choices":[{"delta":{"content":"Hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    final = check_stream(parse_sse(run({"model": "m", "input": "hi", "stream": True}, [strays, text]).body))
    assert final["status"] == "completed" and final["output"][0]["content"][0]["text"] == "Hi"


@pytest.mark.parametrize("blank", [" ", "\n"])
def test_blanks_without_end_are_not_held_back(blank: str) -> None:
    """They could stand before a thought, so the first are held; all would be read again with each that comes."""
    final = _final(*[_delta(content=blank)] * 3_000, _delta(content="Hi"))
    assert final["output"][0]["content"][0]["text"] == blank * 3_000 + "Hi"
    thought = _final(*[_delta(content=blank)] * 20, _delta(content="<think>so</think>Hi"))
    assert [item["type"] for item in thought["output"]] == ["reasoning", "message"]


# Streams that are none, or whose end is odd


def _stream(*parts: bytes, **options: Any) -> dict[str, Any]:
    outcome = run({"model": "m", "input": "hi", "stream": True}, parts, **options)
    return check_stream(parse_sse(outcome.body))


_STOP = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'


def test_a_stream_of_something_else_is_no_answer() -> None:
    final = _stream(b"data: <html>\n\n", b"data: Hello\n\n")
    assert (final["status"], final["error"]["code"]) == ("failed", "upstream_invalid")
    # One bad event among good ones is passed over.
    final = _stream(b"data: <html>\n\n", b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n', _STOP)
    assert (final["status"], final["output"][0]["content"][0]["text"]) == ("completed", "Hi")


def test_text_of_the_older_completions_is_text() -> None:
    chunks = [{"choices": [{"index": 0, "text": text}]} for text in ("It ", "rains", "")]
    assert _final(*chunks)["output"][0]["content"][0]["text"] == "It rains"


def test_an_unfinished_event_that_is_too_large_says_nothing_any_more() -> None:
    """The model had finished; what hangs at the end is no reason to lose its answer."""
    text = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
    rest = b"data: " + b"x" * 1000 + b"\ndata: " + b"x" * 1000
    for finish, status in ((_STOP, "completed"), (b"", "failed")):
        final = _stream(text, finish + rest, limits=limits(sse_event_bytes=1500))
        assert final["status"] == status and final["output"][0]["content"][0]["text"] == "Hi"


@pytest.mark.parametrize(("room", "status"), [(1026, "completed"), (1025, "failed")])
def test_what_was_held_back_until_the_end_counts_as_well(room: int, status: str) -> None:
    """Half a closing tag, of which nobody could know whether it would be one."""
    text = "<think>" + "x" * 1020 + "</thin"
    body = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n' % text.encode()
    final = _stream(body, _STOP, limits=limits(upstream_body_bytes=room))
    assert final["status"] == status
    assert (final["error"] or {}).get("code") == (None if status == "completed" else "upstream_too_large")


def test_of_two_failures_in_one_chunk_the_first_is_told() -> None:
    chunk = {**_delta(content="x" * 2000), "error": {"message": "And I am out of memory."}}
    final = _final(chunk, limits=limits(upstream_body_bytes=1024))
    assert (final["status"], final["error"]["code"]) == ("failed", "upstream_too_large")
    assert "memory" not in final["error"]["message"]


@pytest.mark.parametrize("usage", [5, [], "many", {"prompt_tokens": True}, {"total_tokens": 5}])
def test_usage_that_is_none_is_none(usage: Any) -> None:
    assert _final(_delta(content="c"), {"choices": [], "usage": usage})["usage"] is None
    assert _final(_delta(content="c"), {"choices": [], "x_groq": {"usage": usage}})["usage"] is None
    assert _final(_delta(content="c"), {"choices": [], "x_groq": [usage]})["usage"] is None


@pytest.mark.parametrize(
    "delta", [{"index": 0, "id": "a", "type": "function"}, {"index": 0}, {"index": 7, "function": {}}]
)
def test_an_entry_that_says_nothing_of_its_call_changes_nothing(delta: dict[str, Any]) -> None:
    call = _calls(_part("{}", "f", index=0, id="a"))
    for chunks in ([_calls(delta), call], [call, _calls(delta)], [call, _delta(content="text"), _calls(delta)]):
        final = _final(*chunks, finish="tool_calls")
        assert final["status"] == "completed" and _made(final) == [("a", "f", "{}")]


@pytest.mark.parametrize(
    "late", [_part("", "f", index=0, id="a"), _part("  ", index=0), _part("{}", "f", index=0, id="a")]
)
def test_a_call_that_comes_again_after_it_had_ended_is_the_same_call(late: dict[str, Any]) -> None:
    final = _final(_calls(_part("{}", "f", index=0, id="a")), _delta(content="text"), _calls(late))
    assert final["status"] == "completed" and _made(final) == [("a", "f", "{}")]
