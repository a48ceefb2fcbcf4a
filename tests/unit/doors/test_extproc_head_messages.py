"""Changes of headers and metadata by hand are what the generated classes read as what was meant."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.doors.extproc import wire
from antiphon.doors.extproc._pb import ext_proc_pb2 as pb

NAMES = st.text("abcdefghijklmnopqrstuvwxyz-_0123456789", min_size=1, max_size=140)
# A lone surrogate is a byte that was no UTF-8.
VALUES = st.text(st.characters(codec="utf-8") | st.sampled_from("\udcff\udc80"), max_size=300)
PAIRS = st.lists(
    st.tuples(NAMES | st.sampled_from((":status", "content-type", "accept")), VALUES),
    max_size=8,
    unique_by=lambda pair: pair[0],
)
# Others are made loggable first (`test_metadata_cannot_break_a_log_line` of the messages around them).
LOGGABLE = st.text(st.characters(codec="utf-8", categories=("L", "M", "N", "P", "S")), max_size=256)
NUMBERS = st.integers(min_value=0, max_value=2**53)


def _expected(headers: list[tuple[str, str]], remove: list[str]) -> pb.HeaderMutation:
    mutation = pb.HeaderMutation()
    for name, value in headers:
        option = mutation.set_headers.add()
        option.append_action = pb.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        option.header.key = name
        option.header.raw_value = value.encode("utf-8", "surrogateescape")
    mutation.remove_headers.extend(remove)
    return mutation


@given(PAIRS, st.lists(NAMES, max_size=4))
def test_headers_are_set_and_removed(headers: list[tuple[str, str]], remove: list[str]) -> None:
    written = wire.header_mutation(tuple(headers), tuple(remove))
    assert pb.HeaderMutation.FromString(written) == _expected(headers, remove)


@pytest.mark.parametrize("size", [0, 1, 99, *range(108, 132), 16_380, 16_384, 70_000])
def test_every_length_of_a_value(size: int) -> None:
    for name in ("x-a", "content-type"):
        written = wire.header_mutation(((name, "v" * size),))
        assert pb.HeaderMutation.FromString(written) == _expected([(name, "v" * size)], [])


@given(st.dictionaries(NAMES | st.sampled_from(("status", "model")), NUMBERS | LOGGABLE, min_size=1, max_size=8))
def test_metadata(metadata: wire.Metadata) -> None:
    expected = pb.ProcessingResponse()
    fields = expected.dynamic_metadata.fields["antiphon"].struct_value
    for name, value in metadata.items():
        assert not isinstance(value, wire.TokenRecord)
        if isinstance(value, int):
            fields.fields[name].number_value = value
        else:
            fields.fields[name].string_value = value
    assert pb.ProcessingResponse.FromString(wire.dynamic_metadata(metadata)) == expected


def test_metadata_stands_behind_any_answer() -> None:
    metadata: wire.Metadata = {"status": "completed", "input_tokens": 0, "model": "a\nb"}
    ends = wire.response_body(b"x", end=True, metadata=metadata), wire.response_body(b"", end=True, metadata=metadata)
    for message in (*ends, wire.request_head(((":path", "/"),), ("a",), metadata)):
        fields = pb.ProcessingResponse.FromString(message).dynamic_metadata.fields["antiphon"].struct_value.fields
        assert fields["status"].string_value == "completed"
        assert fields["model"].string_value == "a?b"
        assert fields["input_tokens"].WhichOneof("kind") == "number_value"
        assert fields["input_tokens"].number_value == 0


def test_a_head_is_one_message() -> None:
    head = pb.ProcessingResponse.FromString(wire.request_head(((":path", "/v1"),), ("cookie",), None))
    expected = pb.ProcessingResponse()
    common = expected.request_headers.response
    common.header_mutation.CopyFrom(_expected([(":path", "/v1")], ["cookie"]))
    common.clear_route_cache = True
    assert head == expected
    answer = pb.ProcessingResponse.FromString(wire.response_head(((":status", "200"),), ("server",)))
    expected = pb.ProcessingResponse()
    expected.response_headers.response.header_mutation.CopyFrom(_expected([(":status", "200")], ["server"]))
    assert answer == expected


def test_a_name_that_stands_twice_is_one_list_and_the_last_cookie_stays() -> None:
    headers = (("vary", "a"), ("set-cookie", "a=1"), ("vary", "b"), ("set-cookie", "b=2"))
    written = wire.header_mutation(headers)
    assert pb.HeaderMutation.FromString(written) == _expected([("vary", "a, b"), ("set-cookie", "b=2")], [])
