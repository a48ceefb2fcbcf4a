"""Parses and checks an `mcp` declaration, and determines the address and headers of its server.

This module parses the declaration, and decides which tools the model may see and which calls the client must approve.
This module applies the operator's connectors and allow-list (setting `mcp.allow`) to the declaration. `McpServer.key`
is the key under which the lists of tools and the connections of a server are cached. `mcp_connections.py` connects to
servers, resolves host names and checks IP addresses.

Source: the schema `MCPTool` of OpenAI's API specification.

Invariants: the values of `headers` and `authorization` appear in no error message and in no `repr`. If a client names
the server's URL, Antiphon connects only over https, only to a public address, and only if `mcp.allow` permits the URL.
A server that the operator registered may have any address.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from msgspec import Struct

from antiphon.config.urls import url_secrets
from antiphon.engine.ports.hosted_tools import HostedTool
from antiphon.errors import invalid_value, missing_parameter, missing_value, unsupported_parameter, wrong_value
from antiphon.tools.box import read_declared

_LABEL = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]{0,8192}")
_MAX_HEADERS = 32
# Headers that a client must not set. These headers belong to the connection, or would let a client impersonate another
# host or client towards the operator's servers.
_OWN_HEADERS = frozenset(
    {
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "te", "upgrade", "accept"),
        *("mcp-session-id", "mcp-protocol-version", "forwarded", "x-forwarded-for", "x-real-ip", "proxy-authorization"),
    }
)


class RemoteTool(Struct, frozen=True):
    """A tool as its MCP server describes it. `schema` is the JSON schema of the arguments. `annotations` are MCP's
    hints, such as `readOnlyHint`."""

    name: str
    description: str | None
    schema: dict[str, object]
    annotations: dict[str, object] | None = None

    @property
    def read_only(self) -> bool:
        """Whether the server declares that the tool changes nothing (`readOnlyHint`). MCP's default for this hint is
        false."""
        return bool(self.annotations and self.annotations.get("readOnlyHint"))


class ToolFilter(Struct, frozen=True, forbid_unknown_fields=True):
    """Selects tools by name, or by `readOnlyHint`. Antiphon rejects unknown fields, because ignoring one would select
    more tools than the client wants."""

    tool_names: list[str] | None = None
    read_only: bool | None = None

    def fits(self, tool: RemoteTool) -> bool:
        """Return whether the filter selects the tool. An empty filter selects no tool."""
        if self.tool_names is None and self.read_only is None:
            return False
        if self.tool_names is not None and tool.name not in self.tool_names:
            return False
        return self.read_only is None or tool.read_only is self.read_only


class _Approval(Struct, frozen=True, forbid_unknown_fields=True):
    always: ToolFilter | None = None
    never: ToolFilter | None = None


class McpDeclaration(Struct, frozen=True):
    """An `mcp` entry of the request's `tools`, after `read_declaration` has checked it."""

    server_label: str | None = None
    server_url: str | None = None
    connector_id: str | None = None
    server_description: str | None = None
    authorization: str | None = None
    headers: dict[str, str] | None = None
    allowed_tools: list[str] | ToolFilter | None = None
    require_approval: str | _Approval | None = None
    tunnel_id: str | None = None
    defer_loading: bool | None = None

    @property
    def label(self) -> str:
        """The server's label. `read_declaration` rejects a declaration without a label."""
        return self.server_label or ""

    def __repr__(self) -> str:
        return f"McpDeclaration({self.server_label!r})"

    def shows(self, tool: RemoteTool) -> bool:
        """Return whether `allowed_tools` lets the model see the tool."""
        allowed = self.allowed_tools
        if allowed is None:
            return True
        return tool.name in allowed if isinstance(allowed, list) else allowed.fits(tool)

    def asks(self, tool: RemoteTool) -> bool:
        """Return whether the client must approve a call of the tool. Without `require_approval`, the client must
        approve every call."""
        wanted = self.require_approval
        if not isinstance(wanted, _Approval):
            return wanted != "never"
        if wanted.never is not None and wanted.never.fits(tool):
            return False
        if wanted.always is not None:
            return wanted.always.fits(tool)
        return True


def read_declaration(tool: HostedTool) -> McpDeclaration:
    """Decode and check an `mcp` declaration. Raises `InvalidRequest` that names the field."""
    where = f"tools[{tool.index}]"
    declared = read_declared(tool, McpDeclaration)
    if declared.server_label is None:
        raise missing_parameter(f"{where}.server_label")
    if not _LABEL.fullmatch(declared.server_label):
        raise invalid_value(f"{where}.server_label", "use 1 to 64 letters, digits, underscores or dashes")
    if declared.tunnel_id is not None:
        raise unsupported_parameter(
            "Antiphon does not support tunnels to MCP servers. Use 'server_url' or 'connector_id'.",
            f"{where}.tunnel_id",
        )
    if (declared.server_url is None) == (declared.connector_id is None):
        error = missing_value if declared.server_url is None else wrong_value
        raise error(f"'{where}' needs either 'server_url' or 'connector_id'.", f"{where}.server_url")
    if isinstance(declared.require_approval, str) and declared.require_approval not in ("always", "never"):
        raise invalid_value(f"{where}.require_approval", "use 'always', 'never' or an object of filters")
    _check_headers(f"{where}.headers", declared.headers or {})
    if declared.authorization is not None and not _VALUE.fullmatch(declared.authorization):
        raise invalid_value(f"{where}.authorization", "use a token of characters that an HTTP header may contain")
    return declared


def _check_headers(where: str, headers: dict[str, str]) -> None:
    if len(headers) > _MAX_HEADERS:
        raise invalid_value(where, f"use at most {_MAX_HEADERS} headers")
    for name, value in headers.items():
        if not _HEADER.fullmatch(name) or not _VALUE.fullmatch(value):
            raise invalid_value(where, f"{name[:64]!r} and its value are not a valid HTTP header")
        if name.lower() in _OWN_HEADERS:
            raise invalid_value(where, f"this server sets the header {name!r} itself")


_MAX_URL = 2_048
_OPENS = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)
_SHORTEST_SECRET = 6
_SHORTEST_VALUE = 20
# Two URL parsers may read an unusual URL as different hosts or folders. So Antiphon allows only plain host names and
# rejects paths with dot segments.
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_DOTS = re.compile(r"(?:^|/)(?:\.|%2e){1,2}(?:/|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Connector:
    """An MCP server that the operator registered under a name (`connector_id`). `headers` contain the credentials for
    this server."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class McpServer:
    """An MCP server that a request may use. `registered`: the operator registered the server, so its address may be
    private."""

    url: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    registered: bool = False

    @property
    def key(self) -> str:
        """A hash of the URL and headers. Requests with the same server and credentials share the key. The key does not
        reveal the credentials."""
        text = "\0".join((self.url, *(part for pair in self.headers for part in pair)))
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def hide(self, text: str) -> str:
        """Replace the server's credentials in a text from the server with `…`, because servers often quote credentials
        in their errors."""
        for name, value in self.headers:
            # A header without credentials may contain an ordinary word that also occurs in results, so hide only its
            # long values.
            least = _SHORTEST_SECRET if _OPENS.search(name) else _SHORTEST_VALUE
            for secret in (value, value.partition(" ")[2].strip()):
                if len(secret) >= least:
                    text = text.replace(secret, "…")
        for secret in url_secrets(self.url) if self.registered else ():
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "…")
        return text


class McpServers:
    """Finds the server of a declaration. `allow`: the host names (`*.example.com` for subdomains) and URL prefixes of
    the servers that requests may use. If `allow` is None, requests may use every server at a public address."""

    def __init__(self, allow: Sequence[str] | None, connectors: Mapping[str, Connector]) -> None:
        self._allow = allow
        self._connectors = connectors

    def find(self, where: str, declared: McpDeclaration) -> McpServer:
        """Return the server that a checked declaration names. `where` names the declaration in errors. Raises
        `InvalidRequest`."""
        sent = [(name.lower(), value) for name, value in (declared.headers or {}).items()]
        if declared.authorization is not None:
            token = declared.authorization
            bearer = token if token.lower().startswith(("bearer ", "basic ")) else f"Bearer {token}"
            sent = [pair for pair in sent if pair[0] != "authorization"] + [("authorization", bearer)]
        if declared.connector_id is not None:
            connector = self._connectors.get(declared.connector_id)
            if connector is None:
                problem = (
                    f"This server has no connector '{declared.connector_id[:64]}'. Ask the operator to add it to "
                    "'mcp.connectors'."
                )
                raise wrong_value(problem, f"{where}.connector_id")
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
                f"The MCP server '{parts.scheme}://{parts.netloc}' is not allowed here. Ask the operator to add it to "
                "'mcp.allow'.",
                where,
            )


def _allows(entry: str, url: str, host: str) -> bool:
    if "://" not in entry:
        return fnmatchcase(host.lower(), entry.lower())
    # The URL must continue with `/` or `?` after the prefix. Otherwise a prefix would also match longer host names or
    # path segments.
    return url == entry or url.startswith((entry.rstrip("/") + "/", entry + "?"))
