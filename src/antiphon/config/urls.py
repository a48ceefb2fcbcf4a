"""Parses `state.url`, the location of the stored state, and masks the credentials of URLs in the settings.

The functions that mask credentials accept any string in the settings, because any string may contain a URL. `state.py`
defines the setting `state.url`, and the package `stores` opens the store. `redaction.py` masks secrets in texts that
upstreams send.

In an http URL, the functions mask the user name, the password and the values of all query parameters. Any query
parameter may contain a secret, because each service chooses its own names. The functions also mask path segments that
look like API keys. In other URLs, they mask only the password and parameters whose name suggests a secret.

Invariants: no error message repeats a URL, because the URL may contain a password. The functions do not change a text
without a URL, or a text whose credentials are already masked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from antiphon.redaction import KEYS

Kind = Literal["sqlite", "postgresql", "memory"]

_ALLOWED = (
    "must be sqlite: (databases in the data folder), sqlite:/FOLDER (databases in another folder), "
    "postgresql://USER:PASSWORD@HOST/DATABASE (several servers: HOST:PORT,HOST:PORT), or memory: (the process "
    "loses the state at its end)"
)
_PORT = 5432
_WANTED = ("read-write", "primary", "any")
"""Allowed values of `target_session_attrs`. Antiphon uses only a server that accepts writes, so all values have the
same effect."""
HIDDEN = "***"
"""The text that replaces a password in output."""
_PLACE = re.compile(r"(?P<scheme>[a-z]+:)//(?P<netloc>[^/?#]*)")
_SECRET_PARAMETERS = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class StateUrl:
    """The parsed location of the state.

    `folder` is the folder of the SQLite databases, or None for the data folder. `servers` has the host and port of each
    server if the URL names several servers. For a single server, `servers` is empty. `shown` is the URL without its
    secrets, and `passwords` are these secrets.
    """

    kind: Kind
    shown: str
    folder: Path | None = None
    servers: tuple[tuple[str, int], ...] = ()
    passwords: tuple[str, ...] = field(default=(), repr=False)


def read_state_url(text: str) -> StateUrl:
    """Parse the value of `state.url`. Raises ValueError for an invalid value, with a message that names the allowed
    URLs."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "memory":
        if rest:
            raise ValueError("memory: must end with the colon")
        return StateUrl("memory", "memory:")
    if colon and scheme == "sqlite":
        path = rest.removeprefix("//")
        if rest.startswith("//") and not path.startswith("/"):
            raise ValueError("sqlite: cannot have a host; write sqlite:/FOLDER")
        if path and not path.startswith("/"):
            raise ValueError("sqlite: needs an absolute path; write sqlite:/FOLDER")
        return StateUrl("sqlite", text, Path(path) if path else None)
    if colon and scheme in ("postgresql", "postgres"):
        return _postgresql(text)
    raise ValueError(_ALLOWED)


def shown_url(text: str) -> str:
    """Return the URL with `***` in place of each password. Raises ValueError for an invalid URL."""
    if read_state_url(text).kind != "postgresql":
        return text
    parts = _split(text)
    account, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = account.partition(":")
    netloc = f"{user}{colon}{HIDDEN if password else ''}{at}{hosts}"
    query = "&".join(_shown_pair(one) for one in parts.query.split("&"))
    # The fragment is left out, because it may be a part of a password with a '#' that is not percent-encoded.
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def without_servers(text: str) -> str:
    """Return the URL of a PostgreSQL database without its hosts and ports, because the store passes the host and port
    to the driver separately. Raises ValueError for an invalid URL."""
    parts = _split(text)
    account, at, _ = parts.netloc.rpartition("@")
    # `urlunsplit` would leave out the two slashes before an empty host.
    return f"{parts.scheme}://{account}{at}{parts.path}{'?' if parts.query else ''}{parts.query}"


def _split(text: str) -> SplitResult:
    """Like `urlsplit`, but for a URL that may name several hosts. Raises ValueError for an invalid URL.

    The function checks each host separately, because `urlsplit` does not support lists of hosts. Newer Python versions
    (3.14.10) refuse a list of hosts if an IPv6 address in brackets is not the first host.
    """
    # `urlsplit` removes these characters too.
    text = text.translate(dict.fromkeys(map(ord, "\t\r\n")))
    found = _PLACE.match(text)
    if found is None:
        return urlsplit(text)
    account, at, hosts = found["netloc"].rpartition("@")
    for host in hosts.split(","):
        urlsplit(f"//{account}{at}{host}")
    return urlsplit(f"{found['scheme']}//{text[found.end() :]}")._replace(netloc=found["netloc"])


def _shown_pair(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}{equals}{HIDDEN}" if unquote(name).lower() in _SECRET_PARAMETERS else text


def _postgresql(text: str) -> StateUrl:
    try:
        parts = _split(text)
        parameters = parse_qsl(parts.query)
        servers = _servers(parts, dict(parameters))
    except ValueError:
        # The message of `urlsplit` contains the URL, which may hold a password.
        raise ValueError(
            "is not the URL of a database; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, and %XX for each "
            "character of the password that is not a letter or digit"
        ) from None
    if not text.partition("://")[1] or not (parts.netloc or parameters):
        raise ValueError("names no server; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    wanted = dict(parameters).get("target_session_attrs", _WANTED[0])
    if wanted not in _WANTED:
        raise ValueError(
            f"has a target_session_attrs with which the server may reject writes; use one of {', '.join(_WANTED)}"
        )
    passwords = [unquote(parts.password)] if parts.password else []
    passwords += [value for name, value in parameters if name.lower() in _SECRET_PARAMETERS]
    user, at = parts.netloc.rpartition("@")[0].partition(":")[0], "@" if "@" in parts.netloc else ""
    place = f"postgresql://{user}{at}{parts.netloc.rpartition('@')[2]}{parts.path}"
    several = servers if len(servers) > 1 else ()
    return StateUrl("postgresql", place, servers=several, passwords=tuple(one for one in passwords if one))


def _servers(parts: SplitResult, parameters: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
    """The host and port of each server, parsed like libpq does. Raises ValueError for an invalid port. Raises
    ValueError if the URL has several ports, but not one for each host."""
    listed = parts.netloc.rpartition("@")[2] or parameters.get("host", "")
    ports = [_port(one) for one in parameters["port"].split(",")] if parameters.get("port") else []
    hosts = listed.split(",")
    if ports and len(ports) not in (1, len(hosts)):
        raise ValueError("ports")
    found = []
    for number, text in enumerate(hosts):
        # Colons in an IPv6 address in brackets, or in a path of a Unix socket, do not separate a port.
        closed = text.rpartition("]")[2]
        _, colon, port = ("", "", "") if text.startswith("/") else closed.rpartition(":")
        given = _port(port) if colon and port else _PORT
        name = text[: len(text) - len(colon + port)] if colon else text
        found.append((unquote(name.strip("[]")), ports[number % len(ports)] if ports else given))
    return tuple(found)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65536):
        raise ValueError("port")
    return int(text)


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
    """Return the text with `***` in place of each credential in its URLs."""
    return _pattern(text).sub(lambda found: _shown(_parts(found)), text) if "://" in text else text


def shown_value(value: object) -> object:
    """Apply `shown_text` to every string in a nested value. Other values stay unchanged."""
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, Mapping):
        return {name: shown_value(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shown_value, value)) if type(value) in (list, tuple) else value
    return value


def url_secrets(text: str) -> Iterator[str]:
    """Yield the credentials of the URLs in a text, unmasked. The function yields the value of a query parameter only if
    the parameter's name or value looks like a secret. Other values may be ordinary words, which the log must not
    mask."""
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
