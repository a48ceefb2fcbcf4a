"""A secret that a model spells over several events of a stream is cut out, and everything else stays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.recordings.format import make_entry
from antiphon.redaction import SecretSearch
from antiphon.spelled_secrets import pieces_without, still_spells

KEY = "sk-live-4f9Qd81kZx0WmT7"
SEARCH = SecretSearch([KEY])


def chat(delta: dict[str, Any], index: int = 0, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": delta, **more}]}).encode() + b"\n\n"


def texts(stream: bytes, index: int = 0, name: str = "content") -> list[Any]:
    """The deltas of one choice."""
    events = [json.loads(line[5:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    found = (choice for event in events for choice in event["choices"] if choice["index"] == index)
    return [choice["delta"].get(name, "") for choice in found]


def cut(stream: Sequence[bytes]) -> bytes:
    return b"".join(pieces_without(stream, SEARCH))


def parts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@pytest.mark.parametrize("size", [1, 3, 7, 22])
def test_a_key_over_several_deltas_is_cut_out(size: int) -> None:
    said = f"The key is {KEY}, keep it."
    stream = [*(chat({"content": part}) for part in parts(said, size)), b"data: [DONE]\n\n"]
    left = pieces_without(stream, SEARCH)
    assert "".join(texts(b"".join(left))) == "The key is [redacted], keep it."
    assert len(left) == len(stream) and left[-1] == stream[-1]
    changed = [new for old, new in zip(stream, left, strict=True) if old != new]
    assert len(changed) <= len(KEY) // size + 2 and KEY[-size:].encode() not in b"".join(changed[-2:])


def test_texts_that_take_turns_are_joined_apart() -> None:
    stream = []
    for part in parts(KEY, 4):
        stream += [chat({"content": part}, 0), chat({"content": f"<{part}>"}, 1), chat({"reasoning": "mm"}, 0)]
        call = {"index": 1, "function": {"arguments": part}}
        stream.append(chat({"tool_calls": [{"index": 0, "function": {"arguments": "1"}}, call]}))
    left = cut(stream)
    assert "".join(texts(left)) == "[redacted]"
    # The search ignores the signs between the characters of a key.
    assert "".join(texts(left, 1)) == "<[redacted]>"
    calls = [call for each in texts(left, 0, "tool_calls") for call in each]
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 1) == "[redacted]"
    assert "".join(call["function"]["arguments"] for call in calls if call["index"] == 0) == "1" * len(parts(KEY, 4))


def test_a_key_in_events_of_the_responses_api_is_cut_out() -> None:
    def event(item: str, delta: str) -> bytes:
        told = {"type": "response.output_text.delta", "item_id": item, "output_index": 0, "delta": delta}
        return f"event: {told['type']}\r\ndata: {json.dumps(told)}\r\n\r\n".encode()

    stream = [one for part in parts(KEY, 5) for one in (event("msg_1", part), event("msg_2", "no key "))]
    left = cut(stream)
    said = [json.loads(line[5:]) for line in left.splitlines() if line.startswith(b"data:")]
    assert "".join(one["delta"] for one in said if one["item_id"] == "msg_1") == "[redacted]"
    assert left.count(b"no key ") == len(parts(KEY, 5)) and left.count(b"\r\n\r\n") == len(stream)


def test_a_key_in_base64_and_a_key_with_escapes_in_arguments_are_cut_out() -> None:
    escaped = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    for said in (escaped, json.dumps({"x": KEY}), "c2stbGl2ZS00ZjlRZDgxa1p4MFdtVDc="):
        left = "".join(texts(cut([chat({"content": part}) for part in parts(said, 4)])))
        assert "[redacted]" in left and SEARCH.clean(left.encode()) == left.encode() and len(left) < 40


def test_a_key_in_the_text_of_a_completion_is_cut_out() -> None:
    stream = [b'data: {"choices":[{"text":"%b","logprobs":null}]}\n\n' % part.encode() for part in parts(KEY, 4)]
    assert cut(stream).count(b"redacted") == 1 and b'"text":""' in cut(stream) and KEY[4:8].encode() not in cut(stream)


def test_tokens_that_spell_the_key_go() -> None:
    def tokens(part: str) -> dict[str, Any]:
        return {"content": [{"token": part, "logprob": -0.5, "top_logprobs": [{"token": part}]}]}

    left = cut([chat({"content": part}, logprobs=tokens(part)) for part in parts(f"Yes {KEY}", 4)])
    assert "".join(texts(left)) == "Yes [redacted]" and b"token" not in left
    whole = {"choices": [{"message": {"content": KEY}, "logprobs": {"content": []}}]}
    whole["choices"][0]["logprobs"] = {"content": [{"token": part} for part in parts(KEY, 4)]}
    assert json.loads(cut([json.dumps(whole).encode()]))["choices"][0]["logprobs"] is None


def _tokens_of_the_key() -> dict[str, Any]:
    tokens = [{"token": part} for part in parts(KEY, 4)]
    return {"choices": [{"message": {"content": "hi"}, "logprobs": {"content": tokens}}]}


def test_tokens_go_from_a_body_after_blank_lines_and_from_a_list() -> None:
    for before, whole in (
        (b"\n\r\n  ", _tokens_of_the_key()),
        (b"", [_tokens_of_the_key()]),
        (b" ", [{"choices": [{"logprobs": {"content": [{"token": part}]}}]} for part in parts(KEY, 4)]),
    ):
        body = before + json.dumps(whole).encode()
        left = cut([body])
        assert left.startswith(before) and b"token" not in left and not still_spells(left, SEARCH), whole


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"," + json.dumps(_tokens_of_the_key()).encode()[1:],
        json.dumps([[{"text": part}] for part in parts(KEY, 4)]).encode(),
        b"".join(b'{"response": "%b", "done": false}\n' % part.encode() for part in parts(KEY, 4)),
        b"".join(b'data: {"response": "%b"}\n\n' % part.encode() for part in parts(KEY, 4)),
        b"".join(b'data: {"choices": [{"text": "%b"}]\n\n' % part.encode() for part in parts(KEY, 4)),
    ],
)
def test_a_key_in_a_form_that_cannot_be_cut_is_detected(body: bytes) -> None:
    assert still_spells(cut([body]), SEARCH) and not still_spells(body, SecretSearch([]))
    assert not still_spells(body.replace(KEY[4:8].encode(), b"...."), SEARCH)


def test_what_has_no_such_key_stays_as_it_is() -> None:
    stream = [chat({"content": part}) for part in parts("no key here, only words", 2)]
    for pieces in ([*stream, b"data: {broken", b"\n\n"], [b'{"a": [1.0]}'], [b""], [b"data: [1]\n\ndata: 3\n\n"], []):
        assert pieces_without(pieces, SEARCH) == pieces
    spelled = [chat({"content": part}) for part in parts(KEY, 2)]
    assert pieces_without(spelled, SecretSearch([])) == spelled


def test_an_event_of_several_lines_and_halves_of_surrogates() -> None:
    lines = [
        b'data: {"choices": [{"index": 0,\ndata: "delta": {"content": "%b"}}]}\n\n' % part.encode() for part in KEY
    ]
    assert b"redacted" in cut(lines) and "".join(texts(cut(lines))) == "[redacted]"
    half = b'data: {"choices":[{"index":0,"delta":{"content":"\\ud83d%b"}}]}\n\n'
    left = cut([half % KEY[:9].encode(), chat({"content": KEY[9:]})])
    assert KEY[:9].encode() not in left and b"\\ud83d[redacted]" in left


@given(st.lists(st.integers(0, 2000), max_size=12), st.integers(1, 9))
def test_chunks_of_any_size_keep_their_number_and_their_order(cuts: list[int], size: int) -> None:
    said = f"before {KEY} after"
    whole = b"".join(chat({"content": part}) for part in parts(said, size)) + b"data: [DONE]\n\n"
    places = sorted({0, *(min(at, len(whole)) for at in cuts), len(whole)})
    pieces = [whole[start:end] for start, end in pairwise(places)]
    left = pieces_without(pieces, SEARCH)
    assert len(left) == len(pieces) and "".join(texts(b"".join(left))) == "before [redacted] after"


def test_the_recorder_keeps_an_exchange_whose_key_it_cut_out() -> None:
    stream = [(float(at), chat({"content": part})) for at, part in enumerate(parts(f"is {KEY} ok", 3))]
    entry = make_entry(b"{}", 200, [("content-type", "text/event-stream")], stream, secrets=(KEY,))
    assert "".join(texts(entry.body)) == "is [redacted] ok"
    assert [seconds for seconds, _ in entry.chunks] == [seconds for seconds, _ in stream]


_WORDS = st.sampled_from(["sk-live-", "4f9Qd", "81kZx0WmT7", "content", "a\\", '"', "id", "", "\u00e9"])


@given(st.lists(st.tuples(_WORDS, st.integers(0, 1), st.sampled_from(["content", "id"]), st.booleans()), max_size=12))
def test_the_quick_search_finds_what_the_exact_search_finds(said: list[tuple[str, int, str, bool]]) -> None:
    stream = [chat({name: word, **({"role": "id"} if more else {})}, index) for word, index, name, more in said]
    whole: dict[tuple[int, str], list[str]] = {}
    for word, index, name, _ in said:
        whole.setdefault((index, name), []).append(word)
    spelled = any(len(each) > 1 and SEARCH.spans("".join(each)) for each in whole.values())
    assert (pieces_without(stream, SEARCH) != stream) is spelled
