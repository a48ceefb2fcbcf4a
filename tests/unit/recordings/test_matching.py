"""Which recorded answer a request gets, and the message for a request without one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from antiphon.recordings.format import CHAT_PATH, CassetteEntry, make_entry
from antiphon.recordings.matching import Playlist, differences, summary

JSON = [("content-type", "application/json")]


def _asked(text: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}],
    } | (fields)


def _entry(request: Any, answer: str = "", **values: Any) -> CassetteEntry:
    return make_entry(_bytes(request), 200, JSON, [(0.0, answer.encode())], **values)


def _bytes(request: Any) -> bytes:
    return request if isinstance(request, bytes) else json.dumps(request).encode()


def _taken(playlist: Playlist, request: Any, method: str = "POST", path: str = CHAT_PATH) -> tuple[int, str] | None:
    found = playlist.take(method, path, _bytes(request))
    return (found[0], found[1].body.decode()) if found else None


def test_the_order_of_keys_and_white_space_do_not_matter() -> None:
    playlist = Playlist([_entry(_asked(temperature=1, tools=[{"a": 1, "b": 2}]), "yes")])
    turned = {"tools": [{"b": 2, "a": 1}], "temperature": 1.0, **_asked()}
    assert _taken(playlist, json.dumps(turned, indent=4).encode()) == (1, "yes")


@pytest.mark.parametrize(
    "request_value",
    [
        _asked("ho"),
        _asked(temperature=True),
        _asked(temperature="1"),
        _asked(temperature=None),
        _asked(temperature=1, seed=None),
        b"{",
        b"",
    ],
)
def test_another_request_has_no_answer(request_value: Any) -> None:
    playlist = Playlist([_entry(_asked(temperature=1), "yes")])
    assert _taken(playlist, request_value) is None
    assert _taken(playlist, _asked(temperature=1), "GET") is None
    assert _taken(playlist, _asked(temperature=1), path="/v1/completions") is None


def test_repeated_answers_come_in_order_and_the_last_one_stays() -> None:
    entries = [_entry(_asked(), "1"), _entry(_asked("x"), "x"), _entry(_asked(), "2"), _entry(_asked(), "3")]
    playlist = Playlist(entries)
    assert [_taken(playlist, _asked()) for _ in range(5)] == [(1, "1"), (3, "2"), (4, "3"), (4, "3"), (4, "3")]
    assert [_taken(playlist, _asked("x")) for _ in range(2)] == [(2, "x")] * 2


def test_with_loop_the_first_answer_follows_the_last_one() -> None:
    playlist = Playlist([_entry(_asked(), "1"), _entry(_asked(), "2")], loop=True)
    assert [_taken(playlist, _asked()) for _ in range(5)] == [(1, "1"), (2, "2"), (1, "1"), (2, "2"), (1, "1")]


def test_bodies_that_are_not_json_are_compared_as_bytes() -> None:
    deep = b"[" * 100_000
    playlist = Playlist([_entry(b"a=1", "form"), _entry(b"", "none", method="GET"), _entry(deep, "deep")])
    assert _taken(playlist, b"a=1") == (1, "form") and _taken(playlist, b"", "GET") == (2, "none")
    assert _taken(playlist, b"a=2") is None and _taken(playlist, b'"a=1"') is None
    assert _taken(playlist, deep) == (3, "deep")


@pytest.mark.parametrize(
    ("recorded", "requested", "path", "said"),
    [
        (_asked("hi"), _asked("ho"), "messages[1].content", 'is "hi", but in your request it is "ho"'),
        (_asked(), _asked(model="n"), "model", 'is "m", but in your request it is "n"'),
        (_asked(), _asked(stream=True), "stream", "is missing, but in your request it is true"),
        (_asked(n=1), _asked(), "n", "is 1, but in your request it is missing"),
        (_asked(n=1), _asked(n=True), "n", "is 1, but in your request it is true"),
        (
            _asked([{"type": "text"}]),
            _asked("x"),
            "messages[1].content",
            'is [{"type": "text"}], but in your request it is "x"',
        ),
        (_asked([{"text": "a"}]), _asked([{"text": "b"}]), "messages[1].content[0].text", 'is "a"'),
        ({"messages": []}, {"messages": [1]}, "messages[0]", "is missing, but in your request it is 1"),
        ({"messages": [1]}, {"messages": []}, "messages[0]", "is 1, but in your request it is missing"),
        (b"a", {}, "the body", 'is "a", but in your request it is {}'),
        (_asked("x" * 58), _asked("y"), "messages[1].content", f'is "{"x" * 58}", but in your request it is'),
        (_asked("x" * 59), _asked("y"), "messages[1].content", f'is "{"x" * 58}…, but in your request it is'),
        (
            _asked("x" * 99 + "one"),
            _asked("x" * 99 + "two"),
            "messages[1].content",
            'xone", but in your request it is …"xxx',
        ),
    ],
)
def test_the_first_difference_has_a_path(recorded: Any, requested: Any, path: str, said: str) -> None:
    playlist = Playlist([_entry(recorded)])
    near = playlist.nearest("POST", CHAT_PATH, _bytes(requested))
    assert near is not None and near.number == 1 and near.difference.path == path
    assert said in str(near.difference) and len(str(near.difference)) < 250


def test_the_nearest_entry_has_the_fewest_differences() -> None:
    entries = [_entry(_asked("a", n=1, seed=1)), _entry(_asked("b", n=2)), _entry(_asked("c", n=2), path="/v1/other")]
    near = Playlist(entries).nearest("POST", CHAT_PATH, _bytes(_asked("c", n=2)))
    assert near is not None and near.number == 2 and near.entry == entries[1]
    assert Playlist(entries).nearest("GET", CHAT_PATH, b"") is None


@pytest.mark.parametrize(
    ("request_text", "number"),
    [("plain2", 3), ("a plain", 3), ("SPLIT!", 1), ("Which river crosses Bonn?", 4), ("", 1), (None, 1), ("xxyxx", 5)],
)
def test_the_nearest_of_entries_with_one_difference_has_the_most_similar_text(request_text: Any, number: int) -> None:
    texts = ["SPLIT", "other", "plain", "Which river crosses Cologne?", "xx", "xxxxxxxxxxxx"]
    near = Playlist([_entry(_asked(text)) for text in texts]).nearest("POST", CHAT_PATH, _bytes(_asked(request_text)))
    assert near is not None and near.number == number


def test_one_different_text_is_nearer_than_two_similar_texts() -> None:
    entries = [_entry(_asked("words", user="anna")), _entry(_asked("hello", user="anna1"))]
    near = Playlist(entries).nearest("POST", CHAT_PATH, _bytes(_asked("hello!", user="anna")))
    assert near is not None and near.number == 1


def test_equal_values_have_no_difference() -> None:
    assert list(differences(_asked(n=1.0), _asked(n=1))) == []
    nested: Any = "x"
    for _ in range(5000):
        nested = [nested]
    assert list(differences(nested, nested)) == []


def test_models_and_summaries() -> None:
    entries = [_entry(_asked()), _entry(_asked(model="n")), _entry(b"", method="GET", path="/v1/models"), _entry([1])]
    assert Playlist(entries).models() == ["m", "n"]
    assert [summary(entry) for entry in entries[:3]] == [
        f'POST {CHAT_PATH} m "hi"',
        f'POST {CHAT_PATH} n "hi"',
        "GET /v1/models",
    ]
