"""Removes known secrets from recorded exchanges, and detects secrets that cannot be removed.

This module has the rules that say which headers and environment variables hold secrets. The module finds these secrets
in an exchange and removes them. The module also reads the data of server-sent events. `redaction.py` searches for a
secret in a text, and `format.py` defines an entry.

Invariant: `shows` is true for each text in which `without` finds a secret. `shows` also finds a secret that is escaped,
or split over the chunks of a stream.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final
from urllib.parse import unquote_plus

from antiphon.redaction import SecretSearch, bytes_without, without
from antiphon.spelled_secrets import pieces_without, still_spells

Secrets = tuple[str, ...]

# Local servers accept any key, so clients send words such as "none" or "ollama". Removing such a word would change
# other text.
_SHORTEST: Final = 8
_SHORTEST_VARIABLE: Final = 16
# Longer words that clients send to local servers. The search for a secret ignores the characters between letters, so it
# would find "not-needed" in the sentence "This is not needed".
_PLACEHOLDERS: Final = frozenset(
    {
        *(
            "anything",
            "apikey",
            "dummyapikey",
            "dummykey",
            "fakeapikey",
            "fakekey",
            "localkey",
            "localhost",
            "lmstudio",
        ),
        *("nokeyneeded", "nokeyrequired", "notneeded", "notrequired", "notused", "placeholder", "sknokeyrequired"),
        *("skplaceholder", "testapikey", "yourapikey", "yourkey", "yourapikeyhere"),
    }
)
_HEADER: Final = re.compile(r"auth|key|token|secret|cookie|password|credential|signature|assertion", re.IGNORECASE)
_PARAMETER: Final = re.compile(rf"{_HEADER.pattern}|passwd|^(?:sig|pwd|pass|code)$", re.IGNORECASE)
_VARIABLE: Final = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_ESCAPED: Final = re.compile(r"\\+u([0-9a-fA-F]{4})")
_MOST_SECRETS: Final = 64


def header_secrets(headers: Iterable[tuple[str, str]]) -> Secrets:
    """The credentials in the headers of a request or a response: tokens, API keys, passwords and cookie values. The
    result leaves out short words and common placeholders."""
    found = dict[str, None]()
    for name, value in headers:
        if _HEADER.search(name):
            cookie = "cookie" in name.lower()
            words = (one.partition("=")[2] for one in value.split(";")) if cookie else value.split()
            found.update(dict.fromkeys(word.strip() for word in words))
            scheme, _, encoded = value.strip().partition(" ")
            if scheme.lower() == "basic":
                found.update(dict.fromkeys(_basic(encoded)))
    return _credentials(found)


def query_secrets(query: str) -> Secrets:
    """The values of a URL's query parameters with a credential's name, such as `key` and `sig`: decoded, and as they
    are written in the URL."""
    pairs = (pair.partition("=") for pair in query.split("&"))
    found = (value for name, _, value in pairs if _PARAMETER.search(unquote_plus(name)))
    return _credentials(dict.fromkeys(form for value in found for form in (unquote_plus(value), value)))


def _credentials(values: Iterable[str]) -> Secrets:
    return tuple(one for one in values if len(one) >= _SHORTEST and not _is_placeholder(one))[:_MOST_SECRETS]


def _basic(encoded: str) -> tuple[str, ...]:
    """The user with the password, and the password, of a header `Authorization: Basic`. An empty password makes the
    user the credential."""
    try:
        both = base64.b64decode(encoded.strip() + "==").decode("utf-8", "replace")
    except ValueError:
        return ()
    user, _, password = both.partition(":")
    return both, password or user


def _is_placeholder(word: str) -> bool:
    return "".join(letter for letter in word.lower() if letter.isalnum()) in _PLACEHOLDERS


def environment_secrets(environ: Mapping[str, str]) -> Secrets:
    """The values of variables whose name ends in KEY, TOKEN, SECRET or PASSWORD. The result leaves out short values and
    paths, because they may be ordinary words."""
    values = (value for name, value in environ.items() if _VARIABLE.search(name))
    long = (value for value in values if len(value) >= _SHORTEST_VARIABLE and not value.startswith(("/", "~", ".")))
    return tuple(dict.fromkeys(long))[:_MOST_SECRETS]


def scrubbed(chunks: tuple[tuple[float, bytes], ...], secrets: Secrets) -> tuple[tuple[float, bytes], ...]:
    """The chunks of a body without the secrets. If a secret lies across two chunks, the result is a single chunk."""
    spelled = pieces_without([data for _, data in chunks], SecretSearch(secrets))
    chunks = tuple((seconds, data) for (seconds, _), data in zip(chunks, spelled, strict=True) if data)
    body = b"".join(spelled)
    clean = bytes_without(body, secrets)
    if clean == body:
        return chunks
    each = tuple((seconds, bytes_without(data, secrets)) for seconds, data in chunks)
    if b"".join(data for _, data in each) == clean:
        return each
    return ((chunks[-1][0], clean),)


def shows(content_type: str, body: bytes, secrets: Secrets) -> bool:
    """Whether the body or the content type contains a secret. The function also finds a secret with escaped characters,
    or one that is split over the chunks of a stream."""
    if not secrets:
        return False
    fields: dict[str, list[str]] = {}
    for value in map(_decoded, event_data(content_type, body)):
        for name, text in _texts(value):
            fields.setdefault(name, []).append(text)
    texts = (content_type, body.decode("utf-8", "replace"), *("".join(each) for each in fields.values()))
    found = any(without(plain, secrets) != plain for text in texts for plain in {text, _unescaped(text)})
    return found or still_spells(body, SecretSearch(secrets))


def streamed(content_type: str) -> bool:
    """Whether this is the content type of server-sent events."""
    return content_type.partition(";")[0].strip().lower() == "text/event-stream"


def event_data(content_type: str, body: bytes) -> list[str]:
    """For a stream, return the data of each event except `[DONE]`. For any other body, return the whole text."""
    text = body.decode("utf-8", "replace")
    if not streamed(content_type):
        return [text]
    lines = (line[5:].strip() for line in text.splitlines() if line.startswith("data:"))
    return [line for line in lines if line != "[DONE]"]


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _unescaped(text: str) -> str:
    r"""The text with `\uXXXX` escapes decoded, also in JSON within JSON and in broken JSON."""
    return _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text)


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """All strings in a decoded JSON value, including the names of fields, each with the name of its field."""
    waiting = [("", value)]
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, str):
            yield name, one
        elif isinstance(one, list):
            waiting += [(name, each) for each in reversed(one)]
        elif isinstance(one, dict):
            yield from (("", each) for each in one)
            waiting += reversed(one.items())
