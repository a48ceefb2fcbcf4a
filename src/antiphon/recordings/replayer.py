"""An HTTP server that answers requests with recorded answers.

Lives here: sending a recorded answer with its chunks and times, the list of models, and the error for a request without
an answer. Not here: the choice of the answer (`matching.py`), the command (`commands/chat_servers.py`).

Invariants: a client gets the recorded status, body and chunks. An answer that the recording has cut ends with a closed
connection. The replayer never calls a model server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from antiphon.errors import NotFound
from antiphon.recordings.format import REQUEST_BYTES, Entry, normal_request
from antiphon.recordings.matching import Playlist, summary
from antiphon.recordings.scrubbing import Secrets, header_secrets
from antiphon.recordings.serving import SEND_SECONDS, cut_off, openai_errors

MODELS_PATH: Final = "/v1/models"
_LISTED: Final = 20
_NO_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True)
class Played:
    """The answer to one request, for the line that the command prints. `number` is the entry's number. It is 0 if the
    recording has no answer, and for a list of models that the replayer made. `note` gives the reason, or is empty."""

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
        entries: Sequence[Entry],
        *,
        in_time: bool = False,
        loop: bool = False,
        secrets: Secrets = (),
        report: Callable[[Played], None] = lambda _: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """With `in_time`, the server sends each chunk at its recorded time, and otherwise immediately. `loop` as for
        `Playlist`. The recorder has removed `secrets` and the credentials of each request, so the server removes them
        from a request too. `report` gets each answer. `pause` waits for some seconds, and `clock` is the time in
        seconds."""
        self._playlist = Playlist(entries, loop=loop)
        self._in_time = in_time
        self._secrets = secrets
        self._report = report
        self._pause = pause
        self._clock = clock
        self.app = web.Application(client_max_size=REQUEST_BYTES, middlewares=[openai_errors])
        self.app.router.add_route("*", "/{path:.*}", self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        started = self._now()
        method, path = request.method, request.rel_url.raw_path
        body = await request.read()
        # Removing the secrets of a large body takes some time.
        asked = await asyncio.to_thread(
            normal_request, body, (*self._secrets, *header_secrets(request.headers.items()))
        )
        found = self._playlist.take(method, path, asked)
        if found is None:
            if (method, path) == ("GET", MODELS_PATH):
                return self._models(method, path)
            raise self._unknown(method, path, asked)
        number, entry = found
        self._report(Played(method, path, entry.status, number, entry.model, len(entry.chunks), entry.cut))
        return await self._send(request, entry, started)

    async def _send(self, request: web.Request, entry: Entry, started: float) -> web.StreamResponse:
        if entry.status == 0:
            return cut_off(request, web.StreamResponse())
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
            async with asyncio.timeout(SEND_SECONDS):
                await response.write(data)
        if not begun:
            await response.prepare(request)
        if entry.cut:
            return cut_off(request, response)
        await response.write_eof()
        return response

    def _now(self) -> float:
        return self._clock() if self._clock is not None else asyncio.get_running_loop().time()

    def _models(self, method: str, path: str) -> web.Response:
        """The list of models that the recorded requests name."""
        data = [
            {"id": name, "object": "model", "created": 0, "owned_by": "recording"} for name in self._playlist.models()
        ]
        self._report(Played(method, path, 200, note="the models of the recorded requests"))
        return web.json_response({"object": "list", "data": data})

    def _unknown(self, method: str, path: str, asked: bytes) -> NotFound:
        near = self._playlist.nearest(method, path, asked)
        reason = f"It has no entry for {method} {path}."
        if near is not None:
            reason = f"Nearest is entry {near.number}: {near.difference}."
        listed = [f"{number}: {summary(entry)}" for number, entry in self._playlist.entries[:_LISTED]]
        more = len(self._playlist.entries) - len(listed)
        self._report(Played(method, path, 404, note=f"no recorded answer: {reason}"))
        return NotFound(
            f"The recording has no answer for this request. {reason} Record this request too, or send a recorded one. "
            f"Entries: {'; '.join(listed)}{f'; and {more} more' if more else ''}.",
            param=near.difference.path if near is not None else None,
            code="no_recorded_answer",
        )
