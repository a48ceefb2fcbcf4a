"""Implements two HTTP servers for recordings: a reverse proxy that records exchanges with a chat server, and a server
that replays them.

`Recorder` forwards a request, streams the answer to the client, and appends an entry to the file. `Replayer` sends a
recorded answer with its chunks and times, the list of models, or the error for a request without an answer. `format.py`
defines an entry, `file.py` writes the file, `matching.py` chooses the answer, and `commands/chat_servers.py` has the
commands.

The proxy replaces the prefix `/v1` of a request's path by the upstream's base URL. The proxy sends a request outside
`/v1` to the same path of the upstream's host. The proxy asks for answers without compression, because it cannot find a
secret in compressed bytes. If a request is compressed, the proxy decompresses it for the upstream.

Invariants of the recorder: the client gets the upstream's status, headers and bytes, in the upstream's chunks. A client
that has read the end of a chunked answer finds the entry in the file. Entries are in the order in which their answers
ended. If the upstream breaks an answer off, the proxy also breaks the client's answer off, and the entry has the flag
`cut`. If the client disconnects early, the proxy does not record the exchange. The proxy stores at most
`_BYTES_IN_FLIGHT` bytes of answers that have not ended.

Invariants of the replayer: a client gets the recorded status, body and chunks. If a recorded answer has the flag `cut`,
the replayer closes the connection at the answer's end. The replayer never calls a model server. A client of either
server gets each error as OpenAI's error object, unless an answer has begun.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from antiphon.errors import ApiError, InternalError, NotFound, RequestRefused, UpstreamFailed, UpstreamTimedOut
from antiphon.recordings.file import CassetteFile
from antiphon.recordings.format import (
    ANSWER_BYTES,
    REQUEST_BYTES,
    CannotRecord,
    CassetteEntry,
    entry_line,
    make_entry,
    normal_request,
)
from antiphon.recordings.matching import Playlist, summary
from antiphon.recordings.scrubbing import Secrets, header_secrets, query_secrets
from antiphon.redaction import without

_SEND_SECONDS: Final = 300.0
"""The maximum time in seconds for which a client may read nothing."""
MODELS_PATH: Final = "/v1/models"
_LISTED: Final = 20
_NO_BODY: Final = frozenset({204, 304})
_BYTES_IN_FLIGHT: Final = 256 << 20
_CONNECT_SECONDS: Final = 10.0
_SILENT_SECONDS: Final = 600.0
_HOP_BY_HOP: Final = frozenset(
    {
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"),
        *("proxy-authenticate", "proxy-authorization"),
    }
)


@dataclass(frozen=True)
class RecordedExchange:
    """The result of one exchange, for the line that the command prints. `number` is the entry's number, or 0 if the
    exchange is not recorded. `note` gives the reason why the exchange is not recorded, or another hint. `failed` means
    that the file cannot be written."""

    method: str
    path: str
    status: int = 0
    number: int = 0
    model: str = ""
    chunks: int = 0
    seconds: float = 0.0
    cut: bool = False
    note: str = ""
    failed: bool = False


@dataclass
class _Exchange:
    """One exchange in progress. `chunks` is None if the answer is too large to be recorded."""

    request: web.Request
    body: bytes
    given: Secrets
    """The secrets that the recorder knows without the answer."""
    started: float = field(default_factory=time.monotonic)
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    chunks: list[tuple[float, bytes]] | None = field(default_factory=list)
    bytes: int = 0
    cut: bool = False
    ended: bool = False

    @property
    def secrets(self) -> Secrets:
        return (*self.given, *header_secrets(self.headers))

    @property
    def path(self) -> str:
        """The request's path, without the secrets."""
        return without(self.request.rel_url.raw_path, self.secrets)

    def outcome(self, note: str) -> RecordedExchange:
        seconds, chunks = time.monotonic() - self.started, len(self.chunks or ())
        return RecordedExchange(self.request.method, self.path, self.status, chunks=chunks, seconds=seconds, note=note)


class _NoStatus(Exception):
    """The upstream closed the connection before it sent a status."""


class Recorder:
    """The proxy as an aiohttp application, `app`."""

    def __init__(
        self,
        upstream: str,
        file: CassetteFile,
        *,
        key: str = "",
        secrets: Secrets = (),
        report: Callable[[RecordedExchange], None] = lambda _: None,
    ) -> None:
        """`upstream` is a base URL with its prefix (`/v1`). With a `key`, the proxy sends this key instead of the
        client's. No entry contains `secrets`, `key` or a credential of the request. The proxy calls `report` with the
        result of each exchange."""
        self._base = upstream.rstrip("/")
        self._file = file
        self._key = key
        self._secrets = (*secrets, *((key,) if key else ()))
        self._report = report
        self._writing = asyncio.Lock()
        self._recorded: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._sessions: list[aiohttp.ClientSession] = []
        self.app = web.Application(client_max_size=REQUEST_BYTES, middlewares=[_openai_errors])
        self.app.router.add_route("*", "/{path:.*}", self._handle)
        self.app.cleanup_ctx.append(self._open)

    async def _open(self, _: web.Application) -> AsyncIterator[None]:
        # Use a new connection for each request. The upstream may close an idle connection at any moment, and the
        # closing would look like a cut answer.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("accept", "content-type", "user-agent"),
        ) as session:
            self._sessions.append(session)
            yield
        if self._recorded:
            await asyncio.wait(self._recorded)
        self._file.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        exchange = _Exchange(request, await request.read(), (*self._secrets, *_request_secrets(request)))
        try:
            return await self._exchange(exchange)
        except (asyncio.CancelledError, ConnectionError, TimeoutError):
            if not exchange.ended:
                self._report(exchange.outcome("not recorded: the client left, or the recorder stopped"))
            raise
        except ApiError as error:
            self._report(exchange.outcome(f"not recorded: {error.message}"))
            raise
        finally:
            self._in_flight -= exchange.bytes

    async def _exchange(self, exchange: _Exchange) -> web.StreamResponse:
        request, response = exchange.request, web.StreamResponse()
        try:
            async with self._call(exchange) as answer:
                exchange.status, exchange.headers = answer.status, tuple(answer.headers.items())
                response = web.StreamResponse(
                    status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
                )
                await response.prepare(request)
                await self._stream(exchange, answer, response)
        except _NoStatus:
            exchange.cut = True
        exchange.ended = True
        recorded = asyncio.create_task(self._record(exchange))
        self._recorded.add(recorded)
        recorded.add_done_callback(self._recorded.discard)
        # A client that has read all bytes may leave now, and its exchange is complete.
        await asyncio.shield(recorded)
        if exchange.cut:
            return _cut_off(request, response)
        await response.write_eof()
        return response

    @asynccontextmanager
    async def _call(self, exchange: _Exchange) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the request to the upstream. Raises `_NoStatus` if the upstream breaks off before its status."""
        try:
            answer = await self._sessions[0].request(
                exchange.request.method,
                URL(self._target(exchange.request), encoded=True),
                headers=self._headers(exchange.request),
                data=exchange.body or None,
                allow_redirects=False,
            )
        except TimeoutError:
            raise UpstreamTimedOut("The upstream did not answer in time.") from None
        except aiohttp.ClientError as error:
            cannot_connect = isinstance(error, aiohttp.ClientConnectorError)
            if isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError) and not cannot_connect:
                raise _NoStatus from None
            raise UpstreamFailed(
                f"The recorder gets no answer from its upstream ({type(error).__name__}). Check --upstream."
            ) from None
        async with answer:
            yield answer

    async def _stream(self, exchange: _Exchange, answer: aiohttp.ClientResponse, response: web.StreamResponse) -> None:
        """Pass the answer's body on to the client, in the chunks of the upstream."""
        while True:
            try:
                data, _ = await answer.content.readchunk()
            except (aiohttp.ClientError, OSError):
                exchange.cut = True
                return
            # All answers without a body share one reader in aiohttp. Its `readchunk` and `iter_chunks` report the end
            # only once per process.
            if not data and answer.content.at_eof():
                return
            if data:
                self._keep(exchange, data)
                async with asyncio.timeout(_SEND_SECONDS):
                    await response.write(data)

    def _keep(self, exchange: _Exchange, data: bytes) -> None:
        if exchange.chunks is None:
            return
        exchange.bytes += len(data)
        self._in_flight += len(data)
        if exchange.bytes > ANSWER_BYTES or self._in_flight > _BYTES_IN_FLIGHT:
            self._in_flight -= exchange.bytes
            exchange.chunks, exchange.bytes = None, 0
            return
        exchange.chunks.append((round(time.monotonic() - exchange.started, 6), data))

    async def _record(self, exchange: _Exchange) -> None:
        """Append the entry of an exchange to the file, and call `report`. The method first acquires the file's lock, so
        the file has the entries in the order in which their answers ended."""
        async with self._writing:
            outcome = exchange.outcome("")
            try:
                entry, line, note = await asyncio.to_thread(self._entry, exchange)
                number = await asyncio.to_thread(self._file.append, line)
                outcome = replace(outcome, number=number, model=entry.model, cut=entry.cut, note=note)
            except CannotRecord as error:
                outcome = replace(outcome, note=f"not recorded: {error}")
            except OSError as error:
                outcome = replace(outcome, note=f"not recorded: cannot write: {error.strerror}", failed=True)
        self._report(outcome)

    def _entry(self, exchange: _Exchange) -> tuple[CassetteEntry, bytes, str]:
        """The entry for the exchange, its line in the file, and a note for the user."""
        request = exchange.request
        if exchange.chunks is None:
            raise CannotRecord(
                f"The answer has more than {ANSWER_BYTES >> 20} MiB, or all open answers together have more than "
                f"{_BYTES_IN_FLIGHT >> 20} MiB."
            )
        if any(name.lower() == "content-encoding" and value.lower() != "identity" for name, value in exchange.headers):
            raise CannotRecord("The answer is compressed, and could hide a key.")
        entry = make_entry(
            exchange.body,
            exchange.status,
            exchange.headers,
            exchange.chunks,
            method=request.method,
            path=exchange.path,
            cut=exchange.cut,
            secrets=exchange.secrets,
        )
        source = {
            "repo": "antiphon",
            "path": "antiphon record",
            "interaction": self._file.entries,
            "commit": datetime.now(UTC).date().isoformat(),
        }
        line = entry_line(entry, {"provider": "recorded", "source": source, "provenance": "recording"})
        same = entry.chunks == tuple(exchange.chunks) and entry.request == normal_request(exchange.body, ())
        same = same and entry.path == request.rel_url.raw_path
        return entry, line, "" if same else "a secret was removed"

    def _target(self, request: web.Request) -> str:
        path = request.rel_url.raw_path_qs
        if path.startswith("/v1/"):
            return self._base + path.removeprefix("/v1")
        return self._base.removesuffix("/v1") + path

    def _headers(self, request: web.Request) -> CIMultiDict[str]:
        headers = _end_to_end(request.headers, but=("host", "content-length", "content-encoding"))
        headers["accept-encoding"] = "identity"
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        return headers


def _request_secrets(request: web.Request) -> Secrets:
    """The credentials in the headers and in the URL of a request."""
    return (*header_secrets(request.headers.items()), *query_secrets(request.raw_path.partition("?")[2]))


def _end_to_end(headers: Mapping[str, str], but: tuple[str, ...] = ()) -> CIMultiDict[str]:
    """The headers that a proxy passes on, without those in `but`."""
    own = {one.strip().lower() for one in headers.get("connection", "").split(",")}
    left_out = {*_HOP_BY_HOP, *own, *but}
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in left_out)


@dataclass(frozen=True)
class ReplayedExchange:
    """The answer to one request, for the line that the command prints. `number` is the entry's number. `number` is 0 if
    the recording has no answer, and for a list of models that the replayer made. `note` gives the reason why `number`
    is 0, or is empty."""

    method: str
    path: str
    status: int
    number: int = 0
    model: str = ""
    chunks: int = 0
    cut: bool = False
    note: str = ""


class Replayer:
    """The server as an aiohttp application, `app`."""

    def __init__(
        self,
        entries: Sequence[CassetteEntry],
        *,
        in_time: bool = False,
        loop: bool = False,
        secrets: Secrets = (),
        report: Callable[[ReplayedExchange], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """With `in_time`, the server sends each chunk at its recorded time, and otherwise immediately. `loop` has the
        meaning that `Playlist` describes. The server removes `secrets` and credentials from each request before the
        comparison, because the recorder has also removed them from the recorded requests. The server calls `report`
        with each answer. `pause` waits for some seconds, and `clock` is the time in seconds."""
        self._playlist = Playlist(entries, loop=loop)
        self._in_time = in_time
        self._secrets = secrets
        self._report = report
        self._pause = pause
        self._clock = clock
        self.app = web.Application(client_max_size=REQUEST_BYTES, middlewares=[_openai_errors])
        self.app.router.add_route("*", "/{path:.*}", self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        started = self._now()
        secrets = (*self._secrets, *_request_secrets(request))
        method, path = request.method, without(request.rel_url.raw_path, secrets)
        body = await request.read()
        # Removing the secrets of a large body takes some time.
        asked = await asyncio.to_thread(normal_request, body, secrets)
        found = self._playlist.take(method, path, asked)
        if found is None:
            if (method, path) == ("GET", MODELS_PATH):
                return self._models(method, path)
            raise self._unknown(method, path, asked)
        number, entry = found
        self._report(ReplayedExchange(method, path, entry.status, number, entry.model, len(entry.chunks), entry.cut))
        return await self._send(request, entry, started)

    async def _send(self, request: web.Request, entry: CassetteEntry, started: float) -> web.StreamResponse:
        if entry.status == 0:
            return _cut_off(request, web.StreamResponse())
        response = web.StreamResponse(status=entry.status, headers=dict(entry.headers))
        if not entry.streamed and not entry.cut and entry.status not in _NO_BODY:
            response.content_length = len(entry.body)
        begun = False
        for seconds, data in entry.chunks:
            if self._in_time and (wait := started + seconds - self._now()) > 0:
                await self._pause(wait)
            if not begun:
                begun = True
                await response.prepare(request)
            async with asyncio.timeout(_SEND_SECONDS):
                await response.write(data)
        if not begun:
            await response.prepare(request)
        if entry.cut:
            return _cut_off(request, response)
        await response.write_eof()
        return response

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _models(self, method: str, path: str) -> web.Response:
        """The list of models that the recorded requests name."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "recording"} for name in self._playlist.models()
        ]
        self._report(ReplayedExchange(method, path, 200, note="the models of the recorded requests"))
        return web.json_response({"object": "list", "data": data})

    def _unknown(self, method: str, path: str, asked: bytes) -> NotFound:
        near = self._playlist.nearest(method, path, asked)
        reason = f"No recorded request has the method {method} and the path {path}."
        if near is not None:
            reason = f"The most similar request is entry {near.number}. In it {near.difference}."
        listed = [f"{number}: {summary(entry)}" for number, entry in self._playlist.entries[:_LISTED]]
        more = len(self._playlist.entries) - len(listed)
        self._report(ReplayedExchange(method, path, 404, note=f"no recorded answer: {reason}"))
        return NotFound(
            f"The recording has no answer for this request. {reason} Record this request with 'antiphon record', or "
            f"send a recorded request. Recorded requests: {'; '.join(listed)}{f'; and {more} more' if more else ''}.",
            param=near.difference.path if near is not None else None,
            code="no_recorded_answer",
        )


@web.middleware
async def _openai_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Answer an error with OpenAI's error object."""
    try:
        return await handler(request)
    except ApiError as error:
        return _answer(error, error.status)
    except web.HTTPException as error:
        kind = InternalError if error.status >= 500 else RequestRefused
        return _answer(kind(f"{error.reason}."), error.status)


def _answer(error: ApiError, status: int) -> web.Response:
    return web.Response(body=error.body(), status=status, content_type="application/json", headers=dict(error.headers))


def _cut_off(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """Close the connection before the end of the answer. The client still gets all bytes that were written."""
    if request.transport is not None:
        request.transport.close()
    return response
