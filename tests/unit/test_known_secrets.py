"""Secrets that are known exactly go, in whatever form they stand in somebody else's text."""

from __future__ import annotations

import base64
import html
import json
import re
import string
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.config.settings import load_settings
from antiphon.redaction import SecretSearch, bearer_token, bytes_without, without

_PLAIN = "hunter2plainkey"
_LONG = "Zq3/mV9+kT2xW8bN5cR7yH4jL6pD1sFgA0eU"


@pytest.mark.parametrize("secret", [_PLAIN, _LONG])
@pytest.mark.parametrize(
    "written",
    [
        lambda key: key,
        str.upper,
        str.lower,
        lambda key: quote(key, safe=""),
        lambda key: key.encode().hex(),
        lambda key: base64.b64encode(key.encode()).decode(),
        lambda key: base64.urlsafe_b64encode(key.encode()).decode().rstrip("="),
        lambda key: base64.b64encode(b"user:" + key.encode()).decode(),
        lambda key: base64.b64encode(b"me:" + key.encode() + b":x").decode(),
        lambda key: f"{key[:7]}\n{key[7:]}",
        lambda key: "-".join(key),
        lambda key: f'"{key}"',
    ],
)
def test_it_goes_however_it_is_written(secret: str, written: object) -> None:
    text = f"the key {written(secret)} is wrong for model gpt-4o"  # type: ignore[operator]
    clean = without(text, ("another-secret-of-ours", secret))
    assert SecretSearch(("another-secret-of-ours", secret)).clean(text.encode()) == clean.encode()
    assert "[redacted]" in clean
    assert clean.startswith("the key ") and clean.endswith(" is wrong for model gpt-4o")
    squeezed = "".join(letter for letter in clean.lower() if letter.isalnum())
    assert "".join(letter for letter in secret.lower() if letter.isalnum())[2:-2] not in squeezed


@pytest.mark.parametrize("secret", ["""a'b"c&d<e>f-12""", "word&ones", f"""'<{_LONG}"&"""])
@pytest.mark.parametrize(
    "written",
    [
        html.escape,
        lambda key: html.escape(key).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),
        lambda key: html.escape(key).replace("&#x27;", "&apos;"),
        lambda key: re.sub("""["&'<>]""", lambda found: f"&#{ord(found[0])};", key),
        lambda key: re.sub("""["&'<>]""", lambda found: f"&#X{ord(found[0]):X};", key),
    ],
)
def test_it_goes_with_html_escapes(secret: str, written: object) -> None:
    text = f"The page says: ({written(secret)})"  # type: ignore[operator]
    clean = without(text, (secret,))
    assert SecretSearch((secret,)).clean(text.encode()) == clean.encode()
    assert "[redacted]" in clean and not {"lt", "gt", "word", "quot", "amp", "f"} & set(re.findall("[a-z]+", clean))


def test_of_a_long_key_a_piece_is_enough() -> None:
    assert without(f"{_LONG[:16]}… and …{_LONG[-14:]}", (_LONG,)) == "[redacted]… and …[redacted]"


def test_a_short_one_goes_where_it_stands_alone() -> None:
    assert without("key test1, contest1, Test1", ("test1",)) == "key [redacted], contest1, Test1"
    assert without("a text", ("", "a")) == "a text"


@given(st.text(max_size=300))
def test_a_text_without_one_comes_back(text: str) -> None:
    assert without(text, ("Qx7vLw93kZpT", _LONG)) == text or any(letter in text for letter in string.ascii_letters)
    assert without(text, ()) is text


def test_bytes_that_are_no_text() -> None:
    assert bytes_without(b"\xff\xfe " + _PLAIN.encode() + b"\xff", (_PLAIN,)) == b"\xff\xfe [redacted]\xff"
    assert bytes_without(b"\xff\xfe", (_PLAIN,)) == b"\xff\xfe"


@pytest.mark.parametrize(
    ("header", "token"), [(None, ()), ("", ()), ("Bearer abc", ("abc",)), ("abc", ("abc",)), ("Bearer  abc ", ("abc",))]
)
def test_a_clients_token(header: str | None, token: tuple[str, ...]) -> None:
    assert bearer_token(header) == token


def test_the_settings_secrets_are_all_known() -> None:
    settings = load_settings(
        {
            "upstream": {"api_key": "key-of-one"},
            "upstreams": {"two": {"url": "http://two/v1", "api_key": "key-of-two"}},
            "web_search": {"provider": "brave", "api_key": "key-of-search"},
            "sidecar": {"secret": "s" * 32},
            "sealing": {"keys": ["k" * 40]},
        }
    )
    assert set(settings.secrets()) == {"key-of-one", "key-of-two", "key-of-search", "s" * 32, "k" * 40}


def test_the_search_of_many_texts_finds_parts_of_long_keys_and_short_keys() -> None:
    search = SecretSearch((_LONG, "abc1", ""))
    for start in range(len(_LONG) - 26):
        assert b"[redacted]" in search.clean(f"it is {_LONG[start : start + 26]} here".encode())
    assert search.clean(b"the word abc1 alone") == b"the word [redacted] alone"
    plain = b"nothing of xabc1x here \xff"
    assert search.clean(plain) == plain and SecretSearch(()).clean(plain) is plain


def _every(key: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in key)


@pytest.mark.parametrize(
    "secret", [_PLAIN, _LONG, "Zu+Kunft/9", "schlüssel-für-ölöfen-07", "пароль-секрет", 'a"b/1\\c']
)
@pytest.mark.parametrize(
    "written",
    [
        lambda key: json.dumps(key)[1:-1],
        lambda key: json.dumps(key)[1:-1].replace("+", "\\u002B").replace("/", "\\/").replace("c", "\\u0063"),
        _every,
        lambda key: _every(key).upper().replace("\\U", "\\u"),
        lambda key: json.dumps(_every(key))[1:-1],
        lambda key: json.dumps(json.dumps(_every(key)))[1:-1],
        lambda key: f"\\u00e4\\ud83d\\ude00 {_every(key[0])}{json.dumps(key[1:])[1:-1]}",
    ],
)
def test_the_search_finds_json_escapes(secret: str, written: Any) -> None:
    search = SecretSearch((secret,)).joined(("another-secret-of-ours", "abc1"))
    body = f'{{"a": "Müller \\u2713 \\"x\\"\\n", "b": "{written(secret)}", "c": ["\\u00fc"]}}'.encode()
    clean = search.clean(body)
    found = json.loads(clean)
    assert "[redacted]" in found["b"] and len(found["b"]) < 14 and found["c"] == ["ü"]
    assert clean.startswith('{"a": "Müller \\u2713 \\"x\\"\\n'.encode())
    assert search.clean(body.replace(written(secret).encode(), b"\\u00e4")) == body.replace(
        written(secret).encode(), b"\\u00e4"
    )
