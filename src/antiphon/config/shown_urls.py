"""Hides the credentials of URLs in the settings.

Lives here: the parts of a URL that are shown, and the secrets in one. It reads every text of the settings, because any
of them may hold a URL (also those of other packages' tools). Not here: `state.url`, whose own parser knows more
(`state_url.py`), and texts of upstreams (`redaction.py`).

In an http URL it hides the account and the values of all parameters, because services name their keys as they like. In
its path it hides the parts that look like keys. In other URLs it hides the password, and parameters with a secret's
name.

Invariants: a text without a URL is returned unchanged. What is shown stays the same when it is read again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from antiphon.config.state_url import HIDDEN
from antiphon.redaction import KEYS

_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*)://(?P<rest>[^\s\"'<>]+)", re.IGNORECASE)
# A text that begins as a URL is one as a whole: a password may hold any character.
_WHOLE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_WEB = ("http", "https", "ws", "wss")
_EXAMPLE = "PASSWORD"
_WRONG_PORT = re.compile(r":(?!\d*$)[^\]]*$")
_NAMES = re.compile(r"key|token|secret|passw|pwd|\bpass\b|sig|auth|cred|^code$|session|jwt", re.IGNORECASE)
# Letters of both cases and digits, in no word's order.
_RANDOM = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])[A-Za-z0-9_=~.-]{24,}")


class _Parts(NamedTuple):
    scheme: str
    account: str
    host: str
    path: str
    query: str
    fragment: str


def shown_text(text: str) -> str:
    """The text with `***` for each credential of a URL in it."""
    return _pattern(text).sub(lambda found: _shown(_parts(found)), text) if "://" in text else text


def shown_value(value: Any) -> Any:
    """Apply `shown_text` to every text in a nested value. Other parts stay unchanged."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, Mapping):
        return {name: shown_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown_value, value)) if type(value) in (list, tuple) else value
    return value


def url_secrets(text: str) -> Iterator[str]:
    """The credentials of the URLs in a text, in clear. Of parameters only those that look like one: another value may
    be an ordinary word."""
    for found in _pattern(text).finditer(text):
        parts = _parts(found)
        user, _, password = parts.account.partition(":")
        yield from (unquote(one) for one in (password or (user if parts.scheme.lower() in _WEB else ""),) if one)
        for one in re.split("[&;]", parts.query):
            name, _, value = one.partition("=")
            if value and (_NAMES.search(unquote(name)) or _is_key(unquote(value))):
                yield unquote(value)
        yield from (one for one in parts.path.split("/") if _is_key(one))


def _pattern(text: str) -> re.Pattern[str]:
    return _WHOLE if _WHOLE.match(text) else _URL


def _parts(found: re.Match[str]) -> _Parts:
    rest = found["rest"]
    at = len(re.split("[/?#]", rest, maxsplit=1)[0])
    late = rest.rfind("@")
    if late > at and "@" not in rest[:at] and _WRONG_PORT.search(rest[:at]):
        # A password with a '/', '?' or '#' that is not written as %XX.
        at = late + len(re.split("[/?#]", rest[late:], maxsplit=1)[0])
    account, _, host = rest[:at].rpartition("@")
    before, _, fragment = rest[at:].partition("#")
    path, _, query = before.partition("?")
    return _Parts(found["scheme"], account, host, path, query, fragment)


def _shown(parts: _Parts) -> str:
    web = parts.scheme.lower() in _WEB
    user, colon, password = parts.account.partition(":")
    # Error messages hold an example of a database's URL.
    hidden = HIDDEN if password not in ("", _EXAMPLE) else password
    account = HIDDEN if web else f"{user}{colon}{hidden}"
    at = f"{account}@" if parts.account else ""
    path = "/".join(HIDDEN if web and _is_key(one) else one for one in parts.path.split("/"))
    query = re.sub(r"[^&;]+", lambda one: _shown_parameter(one[0], everything=web), parts.query)
    fragment = f"#{HIDDEN}" if parts.fragment else ""
    return f"{parts.scheme}://{at}{parts.host}{path}{'?' if query else ''}{query}{fragment}"


def _shown_parameter(text: str, *, everything: bool) -> str:
    name, equals, value = text.partition("=")
    if not equals:
        # Some services take a key without a name.
        return HIDDEN if everything else text
    return f"{name}={HIDDEN}" if value and (everything or _NAMES.search(unquote(name)) or _is_key(value)) else text


def _is_key(text: str) -> bool:
    return KEYS.search(text) is not None or _RANDOM.fullmatch(text) is not None
