"""The whole door under a peer that speaks HTTP/2, gRPC and ext_proc badly, on both transports.

Conversations as Envoy has them, with things done to them: messages cut, repeated, swapped and made up, frames of every
kind between them, resets and half-closes anywhere, bytes of a frame changed. Seeded, so a failure can be had again.

What must hold: the server goes on serving others, nothing stays in flight, and no half of a request reaches a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import ngh2
import pytest

from antiphon.doors.extproc._pb import ext_proc_pb2 as pb
from antiphon.doors.extproc.http2_call import with_prefix
from antiphon.doors.extproc.server import Mode, TransportName
from antiphon.doors.extproc.transport import SERVICE
from tests.support.extproc_door import JSON, open_door, request_body
from tests.support.fake_envoy import DEADLINE

SEEDS = 60
_PATHS = (f"/{SERVICE}/Process", "/grpc.health.v1.Health/Check", "/nothing/Here", "/")
_DATA, _RESET, _SETTINGS, _GOAWAY, _WINDOW = 0, 3, 4, 7, 8
_ANSWER = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"fine"},"finish_reason":"stop"}]}'


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


class _Peer:
    """Makes the bytes of one connection."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._http2.initiate_connection()
        self._streams: list[int] = []
        # Some keep to HTTP/2's rules, so that what is above it is reached.
        self.orderly = dice.random() < 0.6

    def script(self) -> list[bytes]:
        """The whole conversation, in pieces to be written one by one."""
        dice = self._dice
        pieces = [bytes(self._http2.data_to_send()), self._open(first=True), self._message(first=True)]
        kinds, weights = (self._open, self._message, self._noise), (3, 12, 1 if self.orderly else 5)
        for _ in range(dice.randint(1, 20)):
            pieces.append(dice.choices(kinds, weights)[0]())
        out = []
        for piece in pieces:
            if piece and not self.orderly and dice.random() < 0.06:
                place = dice.randrange(len(piece))
                piece = piece[:place] + dice.randbytes(1) + piece[place + 1 :]
            if dice.random() < 0.2:
                place = dice.randint(0, len(piece))
                out += [piece[:place], piece[place:]]
            else:
                out.append(piece)
        return out

    def _open(self, *, first: bool = False) -> bytes:
        dice = self._dice
        good = first or dice.random() < 0.6
        headers = [
            (b":method", b"POST" if good else dice.choice((b"POST", b"GET", b""))),
            (b":scheme", b"http"),
            (b":path", (_PATHS[0] if good else dice.choice(_PATHS)).encode()),
            (b":authority", b"fuzz"),
            (b"content-type", b"application/grpc" if good else dice.choice((b"application/grpc", b"text/plain"))),
            (b"te", b"trailers"),
        ]
        if not first and dice.random() < 0.1:
            headers.append((b"grpc-timeout", dice.choice((b"1m", b"5S", b"xx", b"99999999H"))))
        self._streams.append(self._http2.send_request(headers))
        return bytes(self._http2.data_to_send())

    def ping(self) -> bytes:
        """Asks for an answer to everything so far."""
        self._http2.ping(b"all seen")
        return bytes(self._http2.data_to_send())

    def take(self, data: bytes) -> bool:
        """Bytes from the server; whether the ping was answered. Raises `NGH2Error`."""
        self._http2.receive_data(data)
        return any(isinstance(event, ngh2.PingAcknowledged) for event in self._http2.events())

    def _message(self, *, first: bool = False) -> bytes:
        dice = self._dice
        stream = dice.choice(self._streams)
        data = with_prefix(self._content(0 if first else dice.randrange(8)))
        roll = 1.0 if first else dice.random()
        if roll < 0.1:
            data = data[: dice.randint(0, len(data))]
        elif roll < 0.15:
            data = bytes((1,)) + data[1:]
        elif roll < 0.2:
            data = data[:1] + dice.randbytes(4) + data[5:]
        return _frame(_DATA, 1 if dice.random() < 0.15 else 0, stream, data)

    def _content(self, kind: int) -> bytes:
        """A message that Envoy could send, now or at another time, or one that it could not."""
        dice = self._dice
        request = pb.ProcessingRequest()
        if kind == 0:
            for name, value in ((":method", b"POST"), (":path", b"/v1/responses"), ("x-request-id", b"r")):
                header = request.request_headers.headers.headers.add()
                header.key, header.raw_value = name, value
            if dice.random() < 0.8:
                request.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
                request.protocol_config.response_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
        elif kind == 1:
            # Never whole: a model that got it would have got half a request.
            request.request_body.body = b'{"model":"m","input":"half of a req'
        elif kind == 2:
            request.response_body.body = dice.choice((b"data: {}\n\n", b"data: [DONE]\n\n", dice.randbytes(20), b""))
            request.response_body.end_of_stream = dice.random() < 0.3
        elif kind == 3:
            header = request.response_headers.headers.headers.add()
            header.key, header.raw_value = ":status", dice.choice((b"200", b"500", b"x", b""))
        elif kind == 4:
            request.request_trailers.SetInParent()
        elif kind == 5:
            request.response_trailers.SetInParent()
        elif kind == 6:
            return dice.randbytes(dice.randint(0, 60))
        return request.SerializeToString()

    def _noise(self) -> bytes:
        dice = self._dice
        if self.orderly:
            return _frame(_RESET, 0, dice.choice(self._streams), dice.randbytes(4))
        stream = dice.choice((0, *self._streams, 99))
        kind = dice.choice((_RESET, _RESET, _SETTINGS, 6, _WINDOW, _GOAWAY, 2, 9, dice.randrange(256)))
        sizes = {_RESET: 4, _SETTINGS: 6, 6: 8, _WINDOW: 4, _GOAWAY: 8, 2: 5}
        size = sizes.get(kind, dice.randint(0, 30))
        if dice.random() < 0.1:
            size = dice.randint(0, 30)
        return _frame(kind, dice.choice((0, 0, 1, 4, 255)), stream, dice.randbytes(size))


async def _speak(path: str, seed: int) -> None:
    """Say all of it, whatever comes back, and hang up."""
    dice = random.Random(seed)
    peer = _Peer(dice)
    reader, writer = await asyncio.open_unix_connection(path)
    listening = asyncio.ensure_future(_listen(reader, peer))
    try:
        for piece in (*peer.script(), peer.ping()):
            writer.write(piece)
            if dice.random() < 0.5:
                await writer.drain()
                await asyncio.sleep(0)
        if peer.orderly:
            async with asyncio.timeout(DEADLINE):
                await listening
    except ConnectionError:
        pass
    finally:
        if dice.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        listening.cancel()
        await asyncio.wait({listening})


async def _listen(reader: asyncio.StreamReader, peer: _Peer) -> None:
    """Until the ping is answered, or the connection is over."""
    with contextlib.suppress(ConnectionError, ngh2.NGH2Error):
        while (data := await reader.read(1 << 16)) and not peer.take(data):
            pass


@pytest.mark.parametrize("transport", ["http2", "grpcio"])
@pytest.mark.parametrize("mode", ["relay", "drive"])
async def test_a_bad_peer_harms_nobody(transport: TransportName, mode: Mode, tmp_path: Path) -> None:
    async with open_door(tmp_path, transport=transport, mode=mode) as door:
        path = door.address.removeprefix("unix:")
        for seed in range(SEEDS):
            await _speak(path, seed)
        assert not door.chat.requests, "half of a request was sent to a model"
        stream = door.stream()
        await stream.request(request_body())
        if mode == "relay":
            await stream.forwarded()
            await stream.upstream(200, JSON, _ANSWER, end=True)
        await stream.complete()
        assert stream.client.status == 200
        # Those that were cut are cancelled and noted; nothing is left behind.
        assert await door.context.admission.drained(DEADLINE)
        assert door.context.admission.active == 0
