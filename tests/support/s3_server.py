"""An S3 server in this process, which records its requests and gives answers that a test chooses.

Lives here: the requests that file contents need (write, read a range, list, delete several), on a socket of the event
loop. Not here: signatures, which only a real server checks (`seaweed.py`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from antiphon.config.state import BlobSettings
from tests.support.waiting import until

BUCKET = "contents"
_AT = "2024-01-02T03:04:05.000Z"
_REASONS = {200: "OK", 204: "No Content", 206: "Partial Content"}


@dataclass(frozen=True)
class Asked:
    """One received request."""

    method: str
    path: str
    """The key of an object; empty for a request on the bucket."""
    in_path: bool
    """Whether the URL's path contains the bucket's name."""
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class S3Server:
    """A server with one bucket."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        """The stored objects by key."""
        self.asked: list[Asked] = []
        self.page = 1000
        """The maximum number of keys in one answer to a list request."""
        self.refuse: Callable[[Asked], tuple[int, str] | None] = lambda asked: None
        """The status and the code with which the server refuses a request, or None."""
        self.hold: Callable[[Asked], Awaitable[object]] | None = None
        """A function whose result a request awaits before it takes effect."""
        self.ended = asyncio.Event()
        """Set when the server closes. A `hold` that never releases a request waits for this event."""
        self.endpoint = ""
        self._connections: set[asyncio.StreamWriter] = set()

    def close(self) -> None:
        """Release all held requests, and close all connections."""
        self.ended.set()
        for connection in self._connections:
            connection.close()

    def settings(self, **other: Any) -> BlobSettings:
        """Settings that store contents on this server."""
        given = {"url": f"s3://{BUCKET}/t", "endpoint": self.endpoint, "key_id": "AKIDTESTS", "secret": "a-secret"}
        return BlobSettings.model_validate({**given, **other})

    def is_idle(self) -> bool:
        """Whether no client is connected."""
        return not self._connections

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                first, *lines = head.decode().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, target, _ = first.split(" ")
                address = urlsplit(target)
                query = {name: values[0] for name, values in parse_qs(address.query, keep_blank_values=True).items()}
                whole = unquote(address.path)
                path = whole.removeprefix(f"/{BUCKET}").removeprefix("/")
                asked = Asked(method, path, whole.startswith(f"/{BUCKET}"), query, headers, body)
                self.asked.append(asked)
                status, more, said = await self._answer(asked)
                fields = "".join(f"{name}: {value}\r\n" for name, value in more.items())
                reason = _REASONS.get(status, "Refused")
                writer.write(
                    f"HTTP/1.1 {status} {reason}\r\ncontent-length: {len(said)}\r\n{fields}\r\n".encode() + said
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        if (refused := self.refuse(asked)) is not None:
            return refused[0], {}, f"<Error><Code>{refused[1]}</Code></Error>".encode()
        if self.hold is not None:
            await self.hold(asked)
        match asked.method:
            case "PUT":
                self.objects[asked.path] = asked.body
                return 200, {"etag": '"e"'}, b""
            case "POST":
                keys = re.findall(r"<Key>(.*?)</Key>", asked.body.decode())
                for key in keys:
                    self.objects.pop(key, None)
                gone = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
                return 200, {}, f"<DeleteResult>{gone}</DeleteResult>".encode()
            case "DELETE":
                self.objects.pop(asked.path, None)
                return 204, {}, b""
            case "GET" if "list-type" in asked.query:
                return 200, {}, self._listed(asked.query).encode()
            case "GET" if asked.path in self.objects:
                data = self.objects[asked.path]
                found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked.headers["range"])
                assert found is not None
                start, end = int(found[1]), min(int(found[2]) + 1, len(data))
                at = {"content-range": f"bytes {start}-{end - 1}/{len(data)}", "etag": '"e"'}
                return 206, {**at, "last-modified": "Tue, 02 Jan 2024 03:04:05 GMT"}, data[start:end]
            case _:
                return 404, {}, b"<Error><Code>NoSuchKey</Code></Error>"

    def _listed(self, query: dict[str, str]) -> str:
        after = query.get("continuation-token", "")
        # The keys are in reverse order, to test that a client sorts them if it needs an order.
        keys = sorted((key for key in self.objects if key.startswith(query["prefix"])), reverse=True)
        begin = keys.index(after) + 1 if after else 0
        page, more = keys[begin : begin + self.page], keys[begin + self.page :]
        rows = "".join(
            f"<Contents><Key>{key}</Key><LastModified>{_AT}</LastModified><ETag>e</ETag>"
            f"<Size>{len(self.objects[key])}</Size></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        return f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"


@asynccontextmanager
async def s3_server() -> AsyncIterator[S3Server]:
    """Run a server while the context lasts."""
    server = S3Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=1 << 20)
    server.endpoint = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()
        server.close()
        await until(server.is_idle)
