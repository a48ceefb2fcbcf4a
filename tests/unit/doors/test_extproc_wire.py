"""ext_proc messages: what we read and write, in our own eyes and in those of an independent library."""

from __future__ import annotations

import base64
import gzip
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from antiphon.doors.extproc import wire
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.answers import Accounting, decoder_for, final_metadata, in_parts
from antiphon.doors.extproc.received import MessageKind
from antiphon.engine.ports.actions import Finish, Usage
from tests.support.wire_judge import compose, judge

_ROOT = Path(__file__).parents[3]
_DUPLEX = pb.ProcessingMode.FULL_DUPLEX_STREAMED


def _headers(*pairs: tuple[str, bytes], end: bool = False) -> pb.ProcessingRequest:
    request = pb.ProcessingRequest()
    for name, value in pairs:
        request.request_headers.headers.headers.add(key=name, raw_value=value)
    request.request_headers.end_of_stream = end
    return request


# Reading


def test_request_headers_keep_order_and_duplicates_and_are_lower_case() -> None:
    request = _headers((":path", b"/v1/responses"), ("X-A", b"1"), ("x-a", b"2"), end=True)
    received = wire.decode(request.SerializeToString())
    assert received.kind is MessageKind.REQUEST_HEADERS
    assert received.headers == ((":path", "/v1/responses"), ("x-a", "1"), ("x-a", "2"))
    assert received.end


def test_header_in_value_is_read_too() -> None:
    request = pb.ProcessingRequest()
    request.request_headers.headers.headers.add(key="a", value="old style")
    assert wire.decode(request.SerializeToString()).headers == (("a", "old style"),)


@pytest.mark.parametrize("raw", [b"plain", "jürgen".encode(), b"\xff\xfe", b"caf\xe9", b""])
def test_header_bytes_survive_the_round_trip(raw: bytes) -> None:
    ((_, value),) = wire.decode(_headers(("x-owner", raw)).SerializeToString()).headers
    answer = pb.ProcessingResponse.FromString(wire.request_head((("x-owner", value),), ()))
    (option,) = answer.request_headers.response.header_mutation.set_headers
    assert option.header.raw_value == raw


def test_body_parts() -> None:
    request = pb.ProcessingRequest()
    request.request_body.body = b"\x00\xff"
    received = wire.decode(request.SerializeToString())
    assert (received.kind, received.body, received.end) == (MessageKind.REQUEST_BODY, b"\x00\xff", False)
    response = pb.ProcessingRequest()
    response.response_body.end_of_stream = True
    received = wire.decode(response.SerializeToString())
    assert (received.kind, received.body, received.end) == (MessageKind.RESPONSE_BODY, b"", True)


def test_the_empty_metadata_context_that_envoy_appends_is_ignored() -> None:
    request = pb.ProcessingRequest()
    request.response_body.body = b"data"
    assert wire.decode(request.SerializeToString() + b"\x42\x00").body == b"data"


def test_metadata_of_earlier_filters_comes_with_the_request_head_and_is_passed_over_in_bodies() -> None:
    metadata = pb.ProcessingRequest()
    metadata.metadata_context.filter_metadata["space"].update({"claims": {"sub": "anna" * 40, "exp": 7}, "no": [1]})
    tail = metadata.SerializeToString()
    head = wire.decode(_headers((":path", b"/")).SerializeToString() + tail)
    assert head.metadata == {"space": {"claims": {"sub": "anna" * 40}}} and head.headers == ((":path", "/"),)
    part = pb.ProcessingRequest()
    part.request_body.body = b"data"
    received = wire.decode(part.SerializeToString() + tail)
    assert (received.body, received.metadata) == (b"data", None)


def test_body_modes_are_told_by_name() -> None:
    request = _headers((":path", b"/"))
    assert wire.decode(request.SerializeToString()).modes is None
    request.protocol_config.request_body_mode = _DUPLEX
    request.protocol_config.response_body_mode = pb.ProcessingMode.BUFFERED
    assert wire.decode(request.SerializeToString()).modes == ("FULL_DUPLEX_STREAMED", "BUFFERED")


def test_a_mode_of_a_newer_envoy_has_its_number() -> None:
    # protocol_config { request_body_mode: 99 }
    message = _headers((":path", b"/")).SerializeToString() + b"\x5a\x02\x08\x63"
    assert wire.decode(message).modes == ("99", "NONE")


def test_observability_mode_is_seen() -> None:
    request = _headers((":path", b"/"))
    request.observability_mode = True
    assert wire.decode(request.SerializeToString()).observing


def test_a_message_of_a_newer_envoy_is_other() -> None:
    assert wire.decode(b"").kind is MessageKind.OTHER


@pytest.mark.parametrize("junk", [b"\xff", b"\x12\xff", b"GET / HTTP/1.1\r\n"])
def test_junk_is_a_value_error(junk: bytes) -> None:
    with pytest.raises(ValueError, match="not a ProcessingRequest"):
        wire.decode(junk)


# Writing


def test_headers_are_set_by_raw_value_and_several_of_one_name_become_a_list() -> None:
    answer = pb.ProcessingResponse.FromString(wire.response_head((("a", "1"), ("b", "2"), ("a", "3")), ("gone",)))
    mutation = answer.response_headers.response.header_mutation
    options = [(o.header.key, o.header.raw_value, o.header.value, o.append_action) for o in mutation.set_headers]
    overwrite = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    assert options == [("a", b"1, 3", "", overwrite), ("b", b"2", "", overwrite)]
    assert list(mutation.remove_headers) == ["gone"]


def test_the_request_answer_clears_the_route_cache() -> None:
    answer = pb.ProcessingResponse.FromString(wire.request_head(((":path", "/x"),), ()))
    assert answer.request_headers.response.clear_route_cache


def test_metadata_cannot_break_a_log_line() -> None:
    answer = pb.ProcessingResponse.FromString(wire.response_body(b"", True, {"model": "a\nb\r" + "x" * 300, "n": 7}))
    fields = answer.dynamic_metadata.fields["antiphon"].struct_value.fields
    assert fields["model"].string_value == "a?b?" + "x" * 252
    assert fields["n"].number_value == 7


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 1_000_000])
def test_in_parts_marks_exactly_the_last(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    parts = list(in_parts(body))
    assert b"".join(part for part, _ in parts) == body
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]
    assert all(part for part, _ in parts) or size == 0


# The independent judge


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _option(name: str, value: bytes) -> dict[str, Any]:
    return {"header": {"key": name, "raw_value": _b64(value)}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}


def test_an_independent_library_reads_our_answers_the_same() -> None:
    streamed = {"body": _b64(b"\xffpart"), "end_of_stream": True}
    expected: list[tuple[bytes, dict[str, Any]]] = [
        (
            wire.request_head(((":path", "/v1/chat/completions"), ("x", "é")), ("accept-encoding",), {"model": "m"}),
            {
                "request_headers": {
                    "response": {
                        "header_mutation": {
                            "set_headers": [
                                _option(":path", b"/v1/chat/completions"),
                                _option("x", "é".encode()),
                            ],
                            "remove_headers": ["accept-encoding"],
                        },
                        "clear_route_cache": True,
                    }
                },
                "dynamic_metadata": {"antiphon": {"model": "m"}},
            },
        ),
        (
            wire.request_body(b"\xffpart", True),
            {"request_body": {"response": {"body_mutation": {"streamed_response": streamed}}}},
        ),
        (
            wire.response_head(((":status", "200"),), ("server",)),
            {
                "response_headers": {
                    "response": {
                        "header_mutation": {"set_headers": [_option(":status", b"200")], "remove_headers": ["server"]}
                    }
                }
            },
        ),
        (
            wire.response_replaced(((":status", "502"),), (), b"{}", {"status": "error"}),
            {
                "response_headers": {
                    "response": {
                        "status": "CONTINUE_AND_REPLACE",
                        "header_mutation": {"set_headers": [_option(":status", b"502")]},
                        "body_mutation": {"body": _b64(b"{}")},
                    }
                },
                "dynamic_metadata": {"antiphon": {"status": "error"}},
            },
        ),
        (
            wire.response_body(b"\xffpart", True, {"total_tokens": 12}),
            {
                "response_body": {"response": {"body_mutation": {"streamed_response": streamed}}},
                "dynamic_metadata": {"antiphon": {"total_tokens": 12.0}},
            },
        ),
        (wire.response_trailers(), {"response_trailers": {}}),
        (
            wire.immediate(413, (("a", "b"),), b"{}", "antiphon_too_large", {"status": "error"}),
            {
                "immediate_response": {
                    "status": {"code": "PayloadTooLarge"},
                    "headers": {"set_headers": [_option("a", b"b")]},
                    "body": _b64(b"{}"),
                    "details": "antiphon_too_large",
                },
                "dynamic_metadata": {"antiphon": {"status": "error"}},
            },
        ),
        (
            wire.local_head(200, (("a", "b"),)),
            {
                "streamed_immediate_response": {
                    "headers_response": {
                        "headers": {
                            "headers": [
                                {"key": ":status", "raw_value": _b64(b"200")},
                                {"key": "a", "raw_value": _b64(b"b")},
                            ]
                        }
                    }
                }
            },
        ),
        (
            wire.local_body(b"\xffpart", True),
            {"streamed_immediate_response": {"body_response": streamed}},
        ),
    ]
    judged = judge("ProcessingResponse", [message for message, _ in expected])
    for found, (_, value) in zip(judged, expected, strict=True):
        assert found == {**value, "reencoded": True}


def test_we_read_what_an_independent_library_writes() -> None:
    pairs = {"headers": [{"key": ":status", "rawValue": _b64(b"200")}, {"key": "a", "rawValue": _b64(b"\xe9")}]}
    modes = {"requestBodyMode": "FULL_DUPLEX_STREAMED", "responseBodyMode": "STREAMED"}
    messages = compose(
        "ProcessingRequest",
        [
            {"requestHeaders": {"headers": pairs, "endOfStream": True}, "protocolConfig": modes},
            {"requestBody": {"body": _b64(b"ab")}},
            {"requestTrailers": {"trailers": pairs}},
            {"responseHeaders": {"headers": pairs}, "metadataContext": {}},
            {"responseBody": {"body": _b64(b"cd"), "endOfStream": True}, "metadataContext": {}},
            {"responseTrailers": {"trailers": pairs}},
        ],
    )
    received = [wire.decode(message) for message in messages]
    assert [message.kind for message in received] == [kind for kind in MessageKind if kind is not MessageKind.OTHER]
    assert received[0].headers == ((":status", "200"), ("a", "\udce9"))
    assert [message.end for message in received] == [True, False, False, False, True, False]
    assert received[0].modes == ("FULL_DUPLEX_STREAMED", "STREAMED")
    assert (received[1].body, received[4].body) == (b"ab", b"cd")
    assert received[3].headers == received[0].headers


# Content codings


def _inflated(encoding: str, data: bytes, size: int) -> tuple[bytes, str]:
    decoder = decoder_for(encoding)
    assert decoder is not None
    plain = b"".join(decoder.feed(data[at : at + size]) for at in range(0, len(data), size))
    decoder.end()
    return plain, decoder.fault


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_gzip_and_deflate_in_any_split(size: int) -> None:
    text = b"data: hello\n\n" * 100
    assert _inflated("gzip", gzip.compress(text), size) == (text, "")
    assert _inflated(" GZIP ", gzip.compress(text), size) == (text, "")
    assert _inflated("deflate", zlib.compress(text), size) == (text, "")
    bare = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    assert _inflated("deflate", bare.compress(text) + bare.flush(), size) == (text, "")
    assert _inflated("gzip", gzip.compress(text) * 3, size) == (text * 3, "")


@pytest.mark.parametrize("encoding", [None, "", "identity", " Identity "])
def test_nothing_to_undo(encoding: str | None) -> None:
    assert decoder_for(encoding) is None


@pytest.mark.parametrize(
    ("encoding", "data", "fault"),
    [
        ("br", b"anything", "content-encoding 'br'"),
        ("gzip", b"not gzip at all", "a broken gzip body"),
        ("gzip", gzip.compress(b"text", mtime=0)[:-4], "an incomplete gzip body"),
        ("gzip", gzip.compress(bytes(70 << 20), 1, mtime=0), "a gzip body that decompresses to too many bytes"),
        ("gzip", gzip.compress(b"text", mtime=0) + b"and more", "a broken gzip body"),
        ("deflate", zlib.compress(b"text") + b"and more", "extra bytes after the end of a deflate body"),
        ("deflate", b"\xff\xff", "a broken deflate body"),
        ("deflate", zlib.compress(b"text")[:-1], "an incomplete deflate body"),
    ],
    ids=["unknown", "broken", "cut", "bomb", "garbage", "garbage behind deflate", "broken deflate", "cut deflate"],
)
def test_what_cannot_be_undone_is_a_named_fault(encoding: str, data: bytes, fault: str) -> None:
    assert _inflated(encoding, data, 1 << 30)[1] == fault


# The generated classes


def test_the_generated_classes_are_current() -> None:
    done = subprocess.run(
        [str(_ROOT / "scripts" / "lab"), "protos", "--check"],
        env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_end_names_what_is_known_and_nothing_else() -> None:
    assert final_metadata("", Finish("error"), Accounting(lambda *_: 5)) == {"status": "error"}
    known = Finish("completed", Usage(3, 4, 7), "m")
    assert final_metadata("", known, Accounting(lambda model, usage: usage.input_tokens * 100)) == {
        "status": "completed",
        "model": "m",
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 7,
        "cost": 300,
        "envoy.ai.token_usage": wire.TokenRecord("m", Usage(3, 4, 7)),
    }
    free = Finish("completed", Usage(3, 4, 7, 2), "m")
    told = final_metadata("resp_1", free, Accounting(lambda *_: 0))
    assert told["cached_tokens"] == 2 and told["response_id"] == "resp_1" and "cost" not in told


@pytest.mark.parametrize("estimated", [False, True])
@pytest.mark.parametrize("values", [{}, {"status": "completed", "cost": 3}])
def test_the_token_record_is_envoys_own_message(estimated: bool, values: dict[str, str | int]) -> None:
    """It has a namespace of its own, and stands beside our metadata or alone."""
    record = wire.TokenRecord(
        "m\n", Usage(20, 5, 25, cached_tokens=8, cache_write_tokens=2, reasoning_tokens=3), estimated
    )
    answer = pb.ProcessingResponse.FromString(wire.dynamic_metadata({**values, wire.TOKEN_USAGE: record}))
    assert set(answer.dynamic_metadata.fields) == ({"antiphon"} if values else set())
    (typed,) = answer.typed_dynamic_metadata.values()
    assert typed.type_url == "type.googleapis.com/envoy.data.ai.v3.TokenUsage"
    details: dict[str, Any] = {
        "inputTokenDetails": {"cachedTokens": "8", "cacheCreationTokens": "2"},
        "outputTokenDetails": {"reasoningTokens": "3"},
    }
    assert MessageToDict(pb.TokenUsage.FromString(typed.value)) == {
        "apiProtocol": "OPENAI_RESPONSES",
        "model": "m?",
        "inputTokens": "20",
        "outputTokens": "5",
        "totalTokens": "25",
        **({} if estimated else details),
        "extractionStatus": "PARTIAL" if estimated else "COMPLETE",
    }
