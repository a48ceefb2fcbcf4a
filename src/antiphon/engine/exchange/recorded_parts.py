"""Collects the recorded inputs and outputs of one request, for the console.

Lives here: the parts in order, their merging and their limit, the headers that a part may show, and the removal of
secrets. Not here: which inputs and outputs become parts (`recording_exchange.py`), whether Antiphon stores the
recording (`observability/observation.py`).

Chunks of the upstream's answer become one part for each time step of `STEP` seconds, and so do events for the client.
Secrets are removed once, at the end of the request.

Invariants: up to the limit and without secrets, the joined `data` parts are the upstream's bytes, and the joined
`event` parts the client's. The parts take at most the limit in bytes, and there are at most `MOST`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from antiphon.engine.ports.journal import PART, Part, Recording
from antiphon.redaction import KnownSecrets, SecretSearch
from antiphon.types.json import try_decode
from antiphon.types.transport import Headers
from antiphon.types.views import DeclaredTools

STEP: Final = 0.05
MOST: Final = 10_000
# Each part also takes memory for its object and its facts.
_PART_BYTES: Final = 64
_SHOWN: Final = frozenset(
    {
        *("accept", "cache-control", "content-encoding", "content-length", "content-type", "idempotency-key"),
        *("idempotent-replayed", "openai-beta", "openai-model", "openai-processing-ms", "openai-version"),
        *("retry-after", "retry-after-ms", "server", "traceparent", "user-agent", "x-antiphon-local-reply"),
        *("x-antiphon-tried", "x-request-id", "x-should-retry"),
    }
)
_SHOWN_FAMILIES: Final = ("antiphon-", "x-ratelimit-", "x-stainless-")
_NO_SECRETS: Final = frozenset({"accept", "accept-encoding", "accept-language", "content-type", "user-agent"})
_SCHEMES: Final = frozenset({"basic", "bearer", "token"})
_TOOLS: Final = msgspec.json.Decoder(DeclaredTools)


class _Flow:
    """A part that grows by the chunks of one time step."""

    __slots__ = ("at", "kind", "pieces")

    def __init__(self, kind: PART, at: float) -> None:
        self.kind = kind
        self.at = at
        self.pieces: list[bytes] = []


class RecordedParts:
    """The parts of one request. `ticks` is a monotonic clock, and `limit` is the maximum of recorded bytes.

    No part contains one of the request's `secrets`, or a secret for which `search` looks. A process makes one such
    search for the secrets of its settings.
    """

    def __init__(self, limit: int, ticks: Callable[[], float], search: SecretSearch, secrets: KnownSecrets) -> None:
        self._ticks = ticks
        self._search = search
        self._secrets = secrets
        self._room = limit
        self._cut = False
        self._parts: list[Part] = []
        self._flows: list[_Flow] = []

    def add(self, kind: PART, data: bytes = b"", facts: Mapping[str, Any] | None = None) -> None:
        """Add a part. A part without room for its bytes loses their end."""
        self._flush()
        self._append(kind, self._ticks(), self._fitting(data), facts or {})

    def flow(self, kind: PART, data: bytes) -> None:
        """Add a chunk of a stream: `data` of the upstream, or `event` for the client."""
        if self._cut:
            return
        at = self._ticks()
        if self._flows and at - self._flows[0].at >= STEP:
            self._flush()
        for flow in self._flows:
            if flow.kind == kind:
                break
        else:
            flow = _Flow(kind, at)
            self._flows.append(flow)
        flow.pieces.append(self._fitting(data))

    def whole(self, started: float) -> Recording:
        """The recording. `started` is the time at which the request began, on the same clock."""
        self._flush()
        searches = (self._search, SecretSearch(self._secrets))
        parts = [
            Part(
                max(0.0, part.at - started), part.kind, _clean(part.data, searches), _clean_facts(part.facts, searches)
            )
            for part in self._parts
        ]
        return Recording(tuple(parts), self._cut)

    def _flush(self) -> None:
        """Turn the chunks of the current time step into parts. The first flow began first."""
        for flow in self._flows:
            self._append(flow.kind, flow.at, b"".join(flow.pieces), {})
        self._flows.clear()

    def _append(self, kind: PART, at: float, data: bytes, facts: Mapping[str, Any]) -> None:
        if len(self._parts) < MOST:
            self._room -= _PART_BYTES
            self._parts.append(Part(at, kind, data, facts))
        else:
            self._cut = True

    def _fitting(self, data: bytes) -> bytes:
        """The part of these bytes that there is room for."""
        room = max(0, self._room)
        self._room -= len(data)
        if len(data) > room:
            self._cut = True
            return data[:room]
        return data


def shown_headers(headers: Headers) -> list[list[str]]:
    """The headers that a recording may contain. Credentials and cookies are not among them."""
    return [[name, value] for name, value in headers if name in _SHOWN or name.startswith(_SHOWN_FAMILIES)]


def secrets_of_tools(body: bytes) -> KnownSecrets | None:
    """The credentials for MCP servers in a request's body. None if the body cannot be read and may contain some."""
    declared = try_decode(_TOOLS, body)
    if declared is None:
        return None if b"mcp" in body else ()
    found: list[str] = []
    items = declared.input if isinstance(declared.input, list) else []
    tools: list[Any] = [tool for one in (declared, *items) for tool in one.tools or ()]
    while tools:
        tool = tools.pop()
        if not isinstance(tool, dict):
            continue
        if isinstance(nested := tool.get("tools"), list):
            tools += nested
        headers = tool.get("headers")
        values = [tool.get("authorization"), *_credentials_of(tool.get("server_url"))]
        if isinstance(headers, dict):
            values += [value for name, value in headers.items() if name.lower() not in _NO_SECRETS]
        for value in values:
            if isinstance(value, str):
                found.append(value)
                scheme, _, rest = value.partition(" ")
                if scheme.lower() in _SCHEMES:
                    found.append(rest)
    return tuple(dict.fromkeys(found))


def _credentials_of(url: object) -> list[str]:
    """The parts of a URL that may be credentials: the user information, and the values of the query."""
    if not isinstance(url, str):
        return []
    before, _, query = url.partition("?")
    _, _, rest = before.partition("://")
    user, at, _ = rest.partition("/")[0].rpartition("@")
    found = [*user.split(":"), user] if at else []
    return found + [value for pair in query.partition("#")[0].split("&") if (value := pair.partition("=")[2])]


def _clean(data: bytes, searches: tuple[SecretSearch, SecretSearch]) -> bytes:
    for search in searches:
        data = search.clean(data)
    return data


def _clean_facts(facts: Mapping[str, Any], searches: tuple[SecretSearch, SecretSearch]) -> Mapping[str, Any]:
    """The facts of a part, without secrets in their texts and headers."""
    clean: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, str):
            value = _clean_text(value, searches)
        elif isinstance(value, list):
            value = [[header, _clean_text(text, searches)] for header, text in value]
        clean[name] = value
    return clean


def _clean_text(text: str, searches: tuple[SecretSearch, SecretSearch]) -> str:
    return _clean(text.encode("utf-8", "surrogateescape"), searches).decode("utf-8", "surrogateescape")
