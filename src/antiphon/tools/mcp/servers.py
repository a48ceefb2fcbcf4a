"""Which MCP servers may be reached, at which address, and with what.

Lives here: the operator's connectors and allow-list, applied to a declaration. Not here: resolving names and judging
addresses (given by the composition root), connecting.

Invariant: a server that a client names is reached over https, at a public address, and only if the list allows it;
what the operator registered may be anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from antiphon.errors import InvalidRequest, invalid_value, unsupported_parameter
from antiphon.tools.mcp.declaration import McpDeclaration

_MAX_URL = 2_048
_OPENS = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
_SHORTEST_SECRET = 6
_SHORTEST_VALUE = 20
# What another reader of the URL could take for another host or folder is not judged but refused.
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_DOTS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Connector:
    """A server that the operator registered under a name, with the headers that open it."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class McpServer:
    """A server that may be reached. `registered`: by the operator, so that its address may be private."""

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    registered: bool = False

    @property
    def key(self) -> str:
        """The same for the same server with the same credentials, and says nothing about them."""
        text = "\0".join((self.url, *(part for pair in self.headers for part in pair)))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def hide(self, text: str) -> str:
        """The server's words without what opens it: servers like to repeat it in their errors."""
        for name, value in self.headers:
            # An ordinary word that some header holds may stand in what a tool answers.
            least = _SHORTEST_SECRET if _OPENS.search(name) else _SHORTEST_VALUE
            for secret in (value, value.partition(" ")[2].strip()):
                if len(secret) >= least:
                    text = text.replace(secret, "…")
        return text


class McpServers:
    """`allow` holds host names (`*.example.com` for all below one) and beginnings of URLs; None lets everything public
    in."""

    def __init__(self, allow: Sequence[str] | None, connectors: Mapping[str, Connector]) -> None:
        self._allow = allow
        self._connectors = connectors

    def find(self, where: str, declared: McpDeclaration) -> McpServer:
        """The declared server. Raises `InvalidRequest`."""
        sent = [(name.lower(), value) for name, value in (declared.headers or {}).items()]
        if declared.authorization is not None:
            token = declared.authorization
            bearer = token if token.lower().startswith(("bearer ", "basic ")) else f"Bearer {token}"
            sent = [pair for pair in sent if pair[0] != "authorization"] + [("authorization", bearer)]
        if declared.connector_id is not None:
            connector = self._connectors.get(declared.connector_id)
            if connector is None:
                raise InvalidRequest(
                    f"There is no connector '{declared.connector_id[:64]}' here.",
                    param=f"{where}.connector_id",
                    code="invalid_value",
                )
            given = {name for name, _ in sent}
            own = [pair for pair in connector.headers if pair[0].lower() not in given]
            return McpServer(connector.url, tuple(sorted([*own, *sent])), registered=True)
        url = declared.server_url or ""
        self._check(f"{where}.server_url", url)
        return McpServer(url, tuple(sorted(sent)))

    def _check(self, where: str, url: str) -> None:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").rstrip(".")
            _ = parts.port
        except ValueError:
            parts, host = urlsplit(""), ""
        if (
            parts.scheme not in ("https", "http")
            or not _HOST.fullmatch(host)
            or _DOTS.search(parts.path)
            or "\\" in url
            or parts.username is not None
            or len(url) > _MAX_URL
            or not url.isprintable()
        ):
            raise invalid_value(where, "use an https URL without credentials")
        if self._allow is not None and not any(_allows(entry, url, host) for entry in self._allow):
            raise unsupported_parameter(
                "This server is not among those that the gateway may reach. Ask its operator for it ('mcp.allow').",
                where,
            )


def _allows(entry: str, url: str, host: str) -> bool:
    if "://" not in entry:
        return fnmatchcase(host.lower(), entry.lower())
    # What follows must not go on with the host or the last segment.
    return url == entry or url.startswith((entry.rstrip("/") + "/", entry + "?"))
