"""Masks the credentials of URLs in the settings.

Lives here: the choice of the parts of a URL that are shown, and the list of secrets in a URL. The functions take any
text of the settings, because any text may contain a URL. Not here: `state.url`, which has a special parser
(`state_url.py`), and texts of upstreams (`redaction.py`).

In an http URL, the account and the values of all parameters are masked, because parameter names differ between
services. Path segments that look like keys are masked too. In other URLs, the password is masked, and parameters whose
name suggests a secret.

Invariants: a text without a URL is returned unchanged. Masking a masked text again does not change it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from antiphon.config.state_url import HIDDEN
from antiphon.redaction import KEYS

_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*)://(?P<rest>[^\s\"'<>]+)", re.IGNORECASE)
# A text that begins like a URL counts as one URL to its end, because a password may contain any character.
_WHOLE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.+)", re.IGNORECASE | re.DOTALL)
_WEB = ("http", "https", "ws", "wss")
_EXAMPLE = "PASSWORD"
_WRONG_PORT = re.compile(r":(?!\d*$)[^\]]*$")
_NAMES = re.compile(r"key|token|secret|passw|pwd|\bpass\b|sig|auth|cred|^code$|session|jwt", re.IGNORECASE)
# A random key: at least 24 characters with upper-case letters, lower-case letters and digits.
_RANDOM = re.compile(r"(?=[^0-9]*[0-9])(?=[^A-Z]*[A-Z])(?=[^a-z]*[a-z])[A-Za-z0-9_=~.-]{24,}")


class _Parts(NamedTuple):
    scheme: str
    account: str
    host: str
    path: str
    query: str
    fragment: str


def shown_text(text: str) -> str:
    """The text with `***` in place of each credential in its URLs."""
    return _pattern(text).sub(lambda found: _shown(_parts(found)), text) if "://" in text else text


def shown_value(value: Any) -> Any:
    """Apply `shown_text` to every string in a nested value. Other values stay unchanged."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, Mapping):
        return {name: shown_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown_value, value)) if type(value) in (list, tuple) else value
    return value


def url_secrets(text: str) -> Iterator[str]:
    """Yield the credentials of the URLs in a text, in clear text. A parameter counts only if its name or value looks
    like a secret, because other values may be ordinary words."""
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
        # The password contains a '/', '?' or '#' that is not percent-encoded.
        at = late + len(re.split("[/?#]", rest[late:], maxsplit=1)[0])
    account, _, host = rest[:at].rpartition("@")
    before, _, fragment = rest[at:].partition("#")
    path, _, query = before.partition("?")
    return _Parts(found["scheme"], account, host, path, query, fragment)


def _shown(parts: _Parts) -> str:
    web = parts.scheme.lower() in _WEB
    user, colon, password = parts.account.partition(":")
    # Error messages contain an example of a database URL, whose password `PASSWORD` stays visible.
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
        # Some services accept a key as a parameter without a name.
        return HIDDEN if everything else text
    return f"{name}={HIDDEN}" if value and (everything or _NAMES.search(unquote(name)) or _is_key(value)) else text


def _is_key(text: str) -> bool:
    return KEYS.search(text) is not None or _RANDOM.fullmatch(text) is not None
