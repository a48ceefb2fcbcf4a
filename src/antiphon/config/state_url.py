"""The URL that says where state lies.

Lives here: which URLs there are, and what of one may be shown. Not here: the setting (`state.py`), opening anything
(`stores/`).

Invariant: no error repeats the URL, which may hold a password.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Kind = Literal["sqlite", "postgresql", "memory"]

_ALLOWED = (
    "must be sqlite: (databases in the data folder), sqlite:/FOLDER (in another one), "
    "postgresql://USER:PASSWORD@HOST/DATABASE, or memory: (gone with the process)"
)
HIDDEN = "***"
"""What is shown for a password."""
_SECRET_PARAMETERS = ("password", "sslpassword")


@dataclass(frozen=True, slots=True)
class StateUrl:
    """Where state lies. `folder`: of SQLite's databases, when it is not the data folder; `shown`: the URL without
    anything secret; `passwords`: what is."""

    kind: Kind
    shown: str
    folder: Path | None = None
    passwords: tuple[str, ...] = field(default=(), repr=False)


def read_state_url(text: str) -> StateUrl:
    """The URL's parts. Raises ValueError, which says what is allowed."""
    scheme, colon, rest = text.partition(":")
    if colon and scheme == "memory":
        if rest:
            raise ValueError("memory: has nothing behind it")
        return StateUrl("memory", "memory:")
    if colon and scheme == "sqlite":
        path = rest.removeprefix("//")
        if rest.startswith("//") and not path.startswith("/"):
            raise ValueError("sqlite: names no host; write sqlite:/FOLDER")
        if path and not path.startswith("/"):
            raise ValueError("sqlite: takes an absolute path: sqlite:/FOLDER")
        return StateUrl("sqlite", text, Path(path) if path else None)
    if colon and scheme in ("postgresql", "postgres"):
        return _postgresql(text)
    raise ValueError(_ALLOWED)


def shown_url(text: str) -> str:
    """The whole URL with `***` for each password. Raises ValueError."""
    if read_state_url(text).kind != "postgresql":
        return text
    parts = urlsplit(text)
    account, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = account.partition(":")
    netloc = f"{user}{colon}{HIDDEN if password else ''}{at}{hosts}"
    query = "&".join(_shown_parameter(one) for one in parts.query.split("&"))
    # No fragment: a '#' that is not written as %23 may begin a part of a password.
    return f"{parts.scheme}://{netloc}{parts.path}{'?' if query else ''}{query}"


def _shown_parameter(text: str) -> str:
    name, equals, _ = text.partition("=")
    return f"{name}{equals}{HIDDEN}" if unquote(name).lower() in _SECRET_PARAMETERS else text


def _postgresql(text: str) -> StateUrl:
    try:
        parts = urlsplit(text)
        place = _place(parts)
        parameters = parse_qsl(parts.query)
    except ValueError:
        # Its own words hold what stands there.
        raise ValueError(
            "is no URL of a database: postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %XX for what is no letter "
            "or digit in the password"
        ) from None
    if not text.partition("://")[1] or not (parts.netloc or parameters):
        raise ValueError("names no server: postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
    passwords = [unquote(parts.password)] if parts.password else []
    passwords += [value for name, value in parameters if name.lower() in _SECRET_PARAMETERS]
    return StateUrl("postgresql", place, passwords=tuple(one for one in passwords if one))


def _place(parts: SplitResult) -> str:
    """User, servers and database. Raises ValueError for a port that is no number."""
    account, at, hosts = parts.netloc.rpartition("@")
    for host in hosts.split(","):
        port = host.rpartition("]")[2].rpartition(":")[2] if ":" in host.rpartition("]")[2] else ""
        if port and not (port.isdecimal() and int(port) < 65536):
            raise ValueError("port")
    user = account.partition(":")[0]
    return f"postgresql://{user}{at}{hosts}{parts.path}"
