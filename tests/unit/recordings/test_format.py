"""The format of recorded exchanges: what is written can be read, damage is named, and no secret is in an entry."""

from __future__ import annotations

import base64
import json
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.recordings.format import (
    ANSWER_BYTES,
    CHAT_PATH,
    REQUEST_BYTES,
    CannotRecord,
    CassetteEntry,
    DamagedRecording,
    digest_of,
    document_of,
    entry_line,
    entry_of,
    make_entry,
    read_entries,
)
from antiphon.recordings.scrubbing import environment_secrets, event_data, header_secrets, query_secrets, shows
from tests.support.recordings import all_recordings

KEY = "sk-a-key-that-is-secret-1234"
JSON = [("content-type", "application/json")]
STREAM = [("Content-Type", "text/event-stream"), ("Set-Cookie", "a=b"), ("retry-after", "1"), ("x-request-id", "r")]
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Zürich?"}]}
REQUEST = json.dumps(ASKED).encode()

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.just("\ud800"),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=8,
)
_requests = st.one_of(_json.map(lambda value: json.dumps(value, indent=1).encode()), st.binary(max_size=60))


@st.composite
def _chunks(draw: st.DrawFn) -> list[tuple[float, bytes]]:
    parts = draw(st.lists(st.binary(max_size=40), max_size=6))
    waits = draw(st.lists(st.floats(0, 100), min_size=len(parts), max_size=len(parts)))
    return list(zip(accumulate(waits), parts, strict=True))


@given(
    request=_requests,
    status=st.integers(200, 599),
    headers=st.lists(st.tuples(st.sampled_from(["content-type", "Retry-After", "cookie"]), st.text(max_size=30))),
    chunks=_chunks(),
    method=st.sampled_from(["POST", "GET"]),
    path=st.sampled_from([CHAT_PATH, "/v1/models", "/v1/M%C3%BCll", "/ü?api_key=1"]),
    cut=st.booleans(),
)
def test_an_entry_is_read_as_it_was_written(**values: Any) -> None:
    entry = make_entry(**values)
    line = entry_line(entry)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert read_entries(line * 2) == (entry, entry)
    # Neither white space nor the order of keys counts.
    turned = dict(reversed(json.loads(line).items()))
    assert read_entries(json.dumps(turned, indent=1).encode()) == (entry,)
    # What is read gives the same line.
    assert make_entry(
        entry.request, *(status_and_more(entry)), method=entry.method, path=entry.path, cut=entry.cut
    ) == (entry)


def status_and_more(entry: CassetteEntry) -> tuple[int, Any, Any]:
    return entry.status, entry.headers, entry.chunks


def test_an_entry_of_a_stream() -> None:
    chunks = [(0.5, b"data: {}\n\nda"), (0.5, b""), (1.25, b"ta: [DONE]\n\n")]
    line = entry_line(make_entry(REQUEST, 200, STREAM, chunks), {"provider": "vllm", "features": ["text"]})
    document = json.loads(line)
    assert document.pop("sha256") == digest_of(document)
    assert document == {
        "provider": "vllm",
        "model": "m",
        "request": ASKED,
        "status": 200,
        "content_type": "text/event-stream",
        "headers": {"retry-after": "1"},
        "stream": True,
        "net_chunks": [12, 12],
        "net_seconds": [0.5, 1.25],
        "body": "data: {}\n\ndata: [DONE]\n\n",
        "features": ["text"],
    }
    (entry,) = read_entries(line)
    assert entry.streamed and entry.model == "m" and entry.chunks == ((0.5, chunks[0][1]), (1.25, chunks[2][1]))
    assert entry.path == CHAT_PATH and entry.method == "POST" and not entry.cut


def test_an_answer_that_is_not_text_is_base64() -> None:
    line = entry_line(make_entry(b"\xff", 200, JSON, [(0.0, b"\xfe")]))
    assert json.loads(line)["body_base64"] == base64.b64encode(b"\xfe").decode()
    assert json.loads(line)["request_base64"] == base64.b64encode(b"\xff").decode()
    assert read_entries(line)[0].body == b"\xfe"


def test_every_recording_of_the_tests_is_an_entry() -> None:
    for recording in all_recordings():
        body, request = recording.body, json.dumps(recording.request).encode()
        entry = make_entry(request, recording.status, [("content-type", recording.content_type)], [(0.0, body)])
        assert read_entries(entry_line(entry)) == (entry,) and entry.body == body


_LINES = [entry_line(make_entry(REQUEST, 200, JSON, [(0.0, b'{"n": %d}' % number)])) for number in range(3)]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (_LINES[1].replace(b'n\\": 1', b'n\\": 7'), "does not match its sha256"),
        (_LINES[1].replace(b"sha256", b"sha25x"), "has no sha256"),
        (_LINES[1][: len(_LINES[1]) // 2] + b"\n", "is not a JSON object"),
        (b"[]\n", "is JSON, but not a JSON object"),
        (b"null\n", "is JSON, but not a JSON object"),
        (b'{"status":%b}\n' % (b"9" * 5000), "has a number that is too long"),
        (b'{"status":1e999}\n', "has a number that is too long"),
        (b'{"status":NaN}\n', "has a number that is too long"),
        (b"\n", "is not a JSON object"),
        (b"\xff\n", "is not a JSON object"),
        (b"[" * 100_000 + b"\n", "is nested too deeply"),
    ],
)
def test_a_damaged_entry_is_named(second: bytes, said: str) -> None:
    assert second != _LINES[1]
    with pytest.raises(DamagedRecording) as error:
        read_entries(_LINES[0] + second + _LINES[2])
    assert str(error.value).startswith(f"1 of 3 entries are damaged: entry 2 (line 2) {said}")
    assert "Record them again, or delete their lines" in str(error.value)


def test_of_many_damaged_entries_some_are_named() -> None:
    with pytest.raises(DamagedRecording, match=r"8 of 9 .*entry 6 \(line 6\).*; and 3 more") as error:
        read_entries(_LINES[0] + b"{}\n" * 8)
    assert len(str(error.value)) < 500


@given(at=st.integers(0, len(_LINES[1]) - 2), bit=st.integers(0, 7))
def test_a_changed_bit_is_found(at: int, bit: int) -> None:
    changed = bytearray(_LINES[1])
    changed[at] ^= 1 << bit
    # White space outside strings is no content, and so is the way in which a number or a letter is written.
    try:
        same = json.loads(bytes(changed)) == json.loads(_LINES[1])
    except ValueError:
        same = False
    if not same:
        with pytest.raises(DamagedRecording, match="entr"):
            read_entries(bytes(_LINES[0] + changed + _LINES[2]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "200"}, "the status is not a number"),
        ({"status": 0}, "the status is not a number"),
        ({"status": 0, "cut": True}, "an answer without a status has a body"),
        ({"cut": 1}, "'cut' is neither true nor false"),
        ({"method": "get"}, "the method is not an HTTP method"),
        ({"path": "v1"}, "the path is not"),
        ({"path": "/v1?key=1"}, "the path is not"),
        ({"headers": {"set-cookie": "a=b"}}, "the header 'set-cookie' is not allowed"),
        ({"headers": {"retry-after": "1\r\nset-cookie: a"}}, "is not a line of text"),
        ({"headers": ["a"]}, "a value of another type"),
        ({"body": None}, "a value of another type"),
        ({"body_base64": "?"}, "a value of another type"),
        ({"net_chunks": [1]}, "does not add up"),
        ({"net_chunks": [2, 0]}, "does not add up"),
        ({"net_chunks": [-1, 3]}, "does not add up"),
        ({"net_seconds": [1, 2]}, "different lengths"),
        ({"net_seconds": ["1"]}, "seconds of the chunks"),
        ({"net_seconds": [-1]}, "seconds of the chunks"),
        ({"net_seconds": [1e9]}, "seconds of the chunks"),
        ({"net_chunks": [1, 1], "net_seconds": [2, 1]}, "seconds of the chunks"),
    ],
)
def test_values_that_no_recorder_writes_are_refused(change: dict[str, Any], said: str) -> None:
    document = {**document_of(make_entry(REQUEST, 200, JSON, [(0.0, b"{}")])), **change}
    with pytest.raises(ValueError, match=said):
        entry_of({**document, "sha256": digest_of(document)})
    for name in ("status", "body"):
        with pytest.raises(ValueError, match="missing value"):
            entry_of({key: value for key, value in document_of(make_entry(b"", 200, [], [])).items() if key != name})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"request": bytes(REQUEST_BYTES + 1)}, "The request has more than 64 MiB"),
        ({"chunks": [(0.0, bytes(ANSWER_BYTES)), (0.0, b"x")]}, "The answer has more than 32 MiB"),
        ({"status": 101}, "the status is not"),
        ({"method": "BREW COFFEE"}, "the method is not"),
        ({"path": "/\n"}, "the path is not"),
        ({"chunks": [(2.0, b"a"), (1.0, b"b")]}, "the seconds of the chunks decrease"),
        ({"chunks": [(float("nan"), b"a")]}, "the seconds of the chunks"),
    ],
)
def test_an_exchange_without_a_form_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(CannotRecord, match=said):
        make_entry(**{"request": b"", "status": 200, "headers": [], "chunks": [], **values})


# Secrets.


def _split(text: str) -> list[tuple[float, bytes]]:
    """A stream with an unknown form, which `spelled_secrets.py` cannot cut."""
    return [(0.0, b'data: {"parts":[{"words":{"content":"%c"}}]}\n\n' % letter) for letter in text.encode()]


def test_plain_secrets_are_removed() -> None:
    request = json.dumps({"model": "m", "note": KEY, "nested": json.dumps({"k": KEY})}).encode()
    headers = [("content-type", f"application/json; key={KEY}"), ("retry-after", KEY), ("x-key", KEY)]
    chunks = [(0.5, b'{"error": "wrong key '), (1.0, f'{KEY}", "again": "{KEY.upper()}'.encode()), (1.5, b'"}')]
    line = entry_line(make_entry(request, 401, headers, chunks, path=f"/v1/{KEY}?key={KEY}", secrets=(KEY,)))
    assert KEY.lower() not in line.decode().lower() and line.count(b"[redacted]") == 7
    (entry,) = read_entries(line)
    assert [seconds for seconds, _ in entry.chunks] == [0.5, 1.0, 1.5]


def test_a_secret_across_two_chunks_is_removed() -> None:
    body = f'{{"wrong": "{KEY}"}}'.encode()
    entry = make_entry(b"", 200, JSON, [(0.5, body[:20]), (1.0, body[20:])], secrets=(KEY,))
    assert entry.chunks == ((1.0, b'{"wrong": "[redacted]"}'),)


_LETTERS = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


@pytest.mark.parametrize(
    ("request_body", "headers", "chunks"),
    [
        (b"{}", JSON, [(0.0, b'{"message": "%b"}' % _LETTERS.encode())]),
        (b"{}", JSON, [(0.0, b'{"broken": "%b' % _LETTERS.encode())]),
        (b"{}", JSON, [(0.0, json.dumps({"arguments": f'{{"{_LETTERS}": 1}}'}).encode())]),
        (b"{}", STREAM, _split(KEY)),
        (json.dumps({"arguments": f'{{"{_LETTERS}": 1}}'}).encode(), JSON, []),
    ],
)
def test_an_exchange_that_hides_a_secret_is_refused(request_body: bytes, headers: Any, chunks: Any) -> None:
    with pytest.raises(CannotRecord, match="shows a key"):
        make_entry(request_body, 200, headers, chunks, secrets=(KEY,))
    make_entry(request_body, 200, headers, chunks, secrets=("another-secret-5678",))


@given(st.sampled_from(["plain", "upper", "hex", "base64"]), st.integers(0, 60), st.integers(1, 9))
def test_no_form_of_a_secret_is_in_an_entry(form: str, at: int, size: int) -> None:
    text = {
        "plain": KEY,
        "upper": KEY.upper(),
        "hex": KEY.encode().hex(),
        "base64": base64.b64encode(KEY.encode()).decode(),
    }[form]
    body = f'{{"message": "{"." * at}{text}"}}'.encode()
    pieces = [(0.0, body[start : start + size]) for start in range(0, len(body), size)]
    line = entry_line(make_entry(body, 200, JSON, pieces, secrets=(KEY,)))
    assert text not in line.decode() and not shows("", line, (KEY,))


def test_the_secrets_of_headers() -> None:
    found = header_secrets(
        [
            ("Authorization", f"Bearer {KEY}"),
            ("x-api-key", "0123456789"),
            ("cookie", "session=abcdefghij; theme=dark"),
            ("x-goog-api-key", "none"),
            ("authorization", "Bearer not-needed"),
            ("x-goog-iam-assertion", "an-assertion-of-goog"),
            ("content-type", "application/json"),
        ]
    )
    assert found == (KEY, "0123456789", "abcdefghij", "an-assertion-of-goog")


@pytest.mark.parametrize(
    ("both", "found"),
    [
        ("anna:a-password-1", ("anna:a-password-1", "a-password-1")),
        ("anna:short", ("anna:short",)),
        ("a-key-as-user:", ("a-key-as-user:", "a-key-as-user")),
    ],
)
def test_the_secrets_of_basic_credentials(both: str, found: tuple[str, ...]) -> None:
    encoded = base64.b64encode(both.encode()).decode()
    assert header_secrets([("authorization", f"Basic {encoded}")]) == (encoded, *found)
    assert header_secrets([("authorization", "Basic abcde")]) == ()


def test_the_secrets_of_a_query() -> None:
    names = ("key", "api_key", "token", "access_token", "sig", "X-Amz-Signature", "api-version", "signal", "alt")
    query = "&".join(f"{name}=the-value-of-{name}" for name in names)
    assert query_secrets(f"{query}&key=none&key") == tuple(f"the-value-of-{name}" for name in names[:6])
    assert query_secrets("a%5Fkey=with%2Fslash+and") == ("with/slash and", "with%2Fslash+and")
    assert query_secrets("") == ()


def test_the_secrets_of_variables() -> None:
    environ = {
        "GROQ_API_KEY": KEY,
        "CI_TOKEN": "0123456789abcdef",
        "DB_PASSWORD": "postgres",
        "SSH_KEY": "/home/anna/.ssh/id_rsa",
        "KEYBOARD": "a-long-name-of-a-keyboard",
    }
    assert environment_secrets(environ) == (KEY, "0123456789abcdef")


def test_the_data_of_a_stream() -> None:
    assert event_data("Text/Event-Stream; charset=utf-8", b"data: 1\n\ndata:2\n\ndata: [DONE]\n\n") == ["1", "2"]
    assert event_data("application/json", b"data: 1") == ["data: 1"]
