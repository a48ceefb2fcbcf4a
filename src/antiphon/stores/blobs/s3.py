"""Implements `BlobStore` in an S3 bucket.

Lives here: writing, opening and deleting blobs, and the conversion of S3's errors to `StoreError`. Not here: deciding
which blobs to delete (`pending.py`).

A blob consists of several S3 objects, called pieces: `<prefix>/<key>/000000`, `000001`, …. A piece has 8 MiB, or less
while many uploads are open. The last piece has the suffix `-last` (`000007-last`). The writer sends the last piece only
after all other pieces are stored.

Antiphon does not use S3's multipart uploads, because S3 does not list the parts of an unfinished upload as objects.
Aborting an unfinished multipart upload needs its id, which the client library does not expose. Pieces are ordinary
objects, so S3 lists them under the blob's key even if their writer crashed. So one deletion by key removes every piece.

Invariants: a blob without a last piece is never read. An upload buffers one piece and has at most `_SENDING` requests
in progress. All uploads together have at most `_SENDING_ALL` requests in progress. A sequential download buffers one
byte range ("stretch") and fetches the next byte range in advance. While many blobs are open, each upload sends smaller
pieces and each download fetches smaller byte ranges. So the sum of all buffers stays bounded. The function `_share`
computes these sizes. Every request to S3 has a timeout. A closed writer sends no piece. After a failed PUT, S3 may
still store the piece later. So the first deletion of a blob with a failed PUT reports a failure, and a sweep later
deletes the blob a second time. An error message contains only the S3 error code, the HTTP status or advice for the
operator. So no access key, signature or address of another server reaches a log or a response.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from obstore.exceptions import BaseError
from obstore.store import S3Store

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import Blob
from antiphon.engine.waiting import look_at, to_the_end
from antiphon.errors import StoreError, StoreReason
from antiphon.stores.blobs.disk import checked_key

T = TypeVar("T")

PIECE = 8 << 20
_LAST = "-last"
_SENDING = 2
_SENDING_ALL = 16
_STRETCH = 2 << 20
# The maximum bytes of the buffers of all uploads of a process, and the same for downloads. With very many uploads the
# sum exceeds this maximum, because each buffer has at least `LEAST` bytes.
_HELD_ALL = 64 << 20
LEAST = 128 << 10
_FETCHING = 4
_TRIES = 3
_CHECK = "check"
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_UNREACHABLE = re.compile(r"kind: Connect\b|dns error|tcp connect error|ConnectError")
# Link-local addresses of AWS metadata services. The S3 library requests credentials from these addresses when the
# settings have none.
_ROLE = re.compile(r"//169\.254\.(169\.254|170\.2|170\.23)\b")

_NO_CREDENTIALS = "no credentials were found; set blobs.key_id and blobs.secret."
_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"}
)
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"})
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "TooManyRequests"})


class S3Blobs:
    """A `BlobStore` in one bucket, which any number of machines may share."""

    def __init__(self, settings: BlobSettings, piece: int = PIECE, least: int = LEAST) -> None:
        """`settings` must have a `url`. The constructor does not connect to S3. `piece`: the size of an upload's pieces
        in bytes. While many uploads are open, pieces shrink, but not below `least`."""
        self._piece, self._least = piece, least
        self._bucket, prefix = settings.place
        self._where = f"{settings.url} ({settings.endpoint or settings.region})"
        self._seconds = settings.seconds
        self._store = _connected(settings, self._bucket, prefix)
        self._sending = asyncio.Semaphore(_SENDING_ALL)
        self._late: set[str] = set()
        self._uploads = 0
        self._downloads = 0

    @property
    def piece(self) -> int:
        """The current size in bytes of the pieces (S3 objects) that an upload sends."""
        return _share(self._piece, self._uploads, self._least)

    @property
    def stretch(self) -> int:
        """The current number of bytes that one read request of a download fetches."""
        return _share(_STRETCH, self._downloads, self._least)

    async def check(self) -> None:
        """Check that the credentials allow every operation on blobs. Raises `StoreError` with advice."""
        path = f"{_CHECK}/0"
        # List objects before writing, because some servers create a missing bucket on the first write.
        await self.pieces(_CHECK)
        await self.put(path, b"antiphon")
        await self.remove([path])

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[S3BlobWriter]:
        """Begin the upload of a blob under a new key."""
        writer = S3BlobWriter(self, checked_key(key), self._sending)
        self._uploads += 1
        try:
            yield writer
        finally:
            self._uploads -= 1
            if await to_the_end(writer.close()):
                self._late.add(key)

    async def open(self, key: str) -> S3BlobReader:
        """Open a blob for reading. Raises `StoreError` when a piece (S3 object) of the blob is missing."""
        pieces = await self.pieces(checked_key(key))
        numbers = [f"{number:06d}" for number in range(len(pieces))]
        if not pieces or list(pieces) != [*numbers[:-1], numbers[-1] + _LAST]:
            raise StoreError(
                f"Opening a file failed in {self._where}: its content is missing. Restore the content, or delete "
                "the file."
            )
        self._downloads += 1
        return S3BlobReader(self, [(f"{key}/{name}", size) for name, size in pieces.items()])

    def closed(self) -> None:
        """Decrement the number of open downloads. Each reader calls this method when it closes."""
        self._downloads -= 1

    async def delete(self, key: str) -> None:
        """Delete all pieces (S3 objects) of a blob, if any exist. Raises `StoreError` when a deletion fails, or when S3
        may still store a piece after a failed PUT."""
        # For a blob with a failed PUT, `delete` raises below even after deleting. So the pending row stays, and a sweep
        # deletes again when S3 can no longer store the piece.
        late = key in self._late
        self._late.discard(key)
        pieces = await self.pieces(checked_key(key))
        if pieces:
            await self.remove([f"{key}/{name}" for name in pieces])
        if late:
            raise StoreError(
                f"A part of a deleted file may still appear in {self._where}, because one of the upload's "
                "requests to S3 failed. Antiphon deletes the file again later."
            )

    async def aclose(self) -> None:
        """Do nothing: the client library closes idle connections."""

    async def put(self, path: str, data: bytes) -> None:
        """Store one S3 object at `path`. Raises `StoreError`."""
        await self._ask("Storing a file", lambda: self._store.put_async(path, data, use_multipart=False))

    async def fetch(self, path: str, start: int, end: int) -> bytes:
        """Return the bytes from `start` up to, but not including, `end` of one S3 object. Raises `StoreError`."""
        got = await self._ask("Reading a file", lambda: self._store.get_range_async(path, start=start, end=end))
        return got.to_bytes()

    async def pieces(self, key: str) -> dict[str, int]:
        """Return the stored pieces of a blob in order, each with its size in bytes."""

        async def found() -> dict[str, int]:
            return {
                one["path"].rpartition("/")[2]: one["size"]
                async for some in self._store.list(prefix=key)
                for one in some
            }

        return dict(sorted((await self._ask("Looking for a file", found)).items()))

    async def remove(self, paths: list[str]) -> None:
        """Delete the S3 objects at these paths. Raises `StoreError`."""
        await self._ask("Deleting a file", lambda: self._store.delete_async(paths))

    async def _ask(self, doing: str, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request with the timeout of the settings. Raises `StoreError`, which does not quote the library's
        message."""
        try:
            async with asyncio.timeout(self._seconds):
                return await request()
        except TimeoutError:
            raise too_slow(doing, self._where, self._seconds) from None
        except (BaseError, OSError, ValueError) as error:
            raise store_error(doing, self._where, self._bucket, error) from None


class S3BlobWriter:
    """The running upload of one blob."""

    def __init__(self, blobs: S3Blobs, key: str, places: asyncio.Semaphore) -> None:
        self._blobs = blobs
        self._key = key
        self._places = places
        self._hash = hashlib.sha256()
        self.size = 0
        self._held: list[bytes] = []
        self.held_size = 0
        self._sent = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._failure: StoreError | None = None
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Append `data`. Waits while the maximum number of requests is in progress. Raises `StoreError`."""
        self._check()
        self.size += len(data)
        view = memoryview(data)
        while view:
            # Send a full piece only when more data follows, because the last piece has a different name.
            if self.held_size >= self._blobs.piece:
                await self._send("")
            some = bytes(view[: self._blobs.piece - self.held_size])
            view = view[len(some) :]
            self._hash.update(some)
            self._held.append(some)
            self.held_size += len(some)

    async def seal(self) -> Blob:
        """Store the last piece after all other pieces. Returns the blob's size and SHA-256. Raises `StoreError`."""
        self._check()
        await self._until_sent(0)
        await self._send(_LAST)
        await self._until_sent(0)
        self._closed = True
        return Blob(self._key, self.size, self._hash.hexdigest())

    async def close(self) -> bool:
        """Stop sending, and wait for the requests in progress. Returns whether a request failed. After a failed
        request, S3 may still store the piece later."""
        self._closed = True
        self._held.clear()
        if self._sending:
            await asyncio.wait(self._sending)
        return self._failure is not None

    async def _send(self, suffix: str) -> None:
        await self._until_sent(_SENDING - 1)
        await self._places.acquire()
        data = b"".join(self._held)
        self._held.clear()
        self.held_size = 0
        task = asyncio.create_task(self._blobs.put(f"{self._key}/{self._sent:06d}{suffix}", data))
        self._sent += 1
        self._sending.add(task)
        task.add_done_callback(self._was_sent)

    def _was_sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._places.release()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            self._failure = (
                error
                if isinstance(error, StoreError)
                else StoreError("Storing a file failed: a request to S3 was cancelled or failed.")
            )

    async def _until_sent(self, most: int) -> None:
        """Wait until at most `most` PUT requests are in progress. Raises `StoreError` if a PUT request failed."""
        while len(self._sending) > most:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreError("This file is closed: its upload has already ended.")


class S3BlobReader:
    """A blob in the bucket that is open for reading. If the caller reads sequentially, the reader fetches the next byte
    range in advance."""

    path: Path | None = None

    def __init__(self, blobs: S3Blobs, pieces: list[tuple[str, int]]) -> None:
        self._blobs = blobs
        self._pieces = pieces
        self._starts = [0]
        for _, size in pieces:
            self._starts.append(self._starts[-1] + size)
        self.size = self._starts[-1]
        self._window: tuple[int, bytes] = (0, b"")
        self._ahead: tuple[int, asyncio.Task[bytes]] | None = None
        self._read_to = 0
        self._closed = False

    async def read(self, start: int, limit: int) -> bytes:
        """Return `limit` bytes from offset `start`, or fewer at the end of the blob. Raises `StoreError`."""
        if self._closed:
            raise StoreError("This file is closed: it cannot be read any more.")
        end = min(start + limit, self.size)
        parts = []
        at = start
        while at < end:
            part = await (self._long(at, end) if end - at > _STRETCH else self._short(at, end))
            parts.append(part)
            at += len(part)
        self._read_to = at
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def aclose(self) -> None:
        """Close the reader, and cancel a fetch in progress."""
        if self._closed:
            return
        self._closed = True
        self._blobs.closed()
        self._window = (0, b"")
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead[1].cancel()
            await to_the_end(asyncio.wait({ahead[1]}))

    async def _long(self, start: int, end: int) -> bytes:
        """Read a large range by fetching up to `_FETCHING` smaller byte ranges concurrently. Returns at least one
        byte."""
        most = min(end, start + _FETCHING * _STRETCH)
        spans = [(at, min(at + _STRETCH, most)) for at in range(start, most, _STRETCH)]
        return b"".join(await asyncio.gather(*(self._fetch(*span) for span in spans)))

    async def _short(self, start: int, end: int) -> bytes:
        """Return bytes from `start` on, up to `end` or the end of the buffered byte range."""
        first, window = self._window
        if not first <= start < first + len(window):
            ahead, self._ahead = self._ahead, None
            if ahead is not None and ahead[0] != start:
                ahead[1].cancel()
                ahead = None
            if ahead is not None:
                window = await ahead[1]
            elif start and start == self._read_to:
                window = await self._fetch(start, min(start + self._blobs.stretch, self.size))
            else:
                # The caller has not read sequentially so far, so fetch only the requested bytes.
                return await self._fetch(start, end)
            first = start
            self._window = (first, window)
            self._look_ahead(first + len(window))
        return window[start - first : end - first]

    def _look_ahead(self, start: int) -> None:
        if start < self.size:
            task = asyncio.create_task(self._fetch(start, min(start + self._blobs.stretch, self.size)))
            task.add_done_callback(look_at)
            self._ahead = (start, task)

    async def _fetch(self, start: int, end: int) -> bytes:
        """Fetch exactly the bytes from `start` up to, but not including, `end`. The range may span several pieces (S3
        objects)."""
        parts = []
        while start < end:
            number = bisect_right(self._starts, start) - 1
            path, size = self._pieces[number]
            first = self._starts[number]
            part = await self._blobs.fetch(path, start - first, min(end - first, size))
            if not part:
                raise StoreError("A stored file in the bucket is truncated: it is shorter than its recorded size.")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _share(most: int, among: int, least: int) -> int:
    return max(least, min(most, _HELD_ALL // max(among, 1)))


def _connected(settings: BlobSettings, bucket: str, prefix: str) -> S3Store:
    seconds = timedelta(seconds=settings.seconds)
    given: dict[str, Any] = {}
    if settings.key_id is not None and settings.secret is not None:
        given["access_key_id"] = settings.key_id.get_secret_value()
        given["secret_access_key"] = settings.secret.get_secret_value()
    if settings.endpoint is not None:
        given["endpoint"] = settings.endpoint
    path_style = settings.endpoint is not None if settings.path_style is None else settings.path_style
    return S3Store(
        bucket,
        prefix=prefix or None,
        region=settings.region,
        virtual_hosted_style_request=not path_style,
        client_options={
            "allow_http": settings.endpoint is not None and settings.endpoint.startswith("http:"),
            "timeout": seconds,
            "connect_timeout": min(seconds, timedelta(seconds=5)),
        },
        retry_config={
            "max_retries": _TRIES - 1,
            "retry_timeout": seconds,
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
        },
        **given,
    )


def store_error(doing: str, where: str, bucket: str, error: BaseException) -> StoreError:
    """Return the error for a failed operation. `doing` names the operation as a gerund, `where` the storage."""
    advice, reason = _advice(bucket, str(error))
    return StoreError(f"{doing} failed in {where}: {advice}", reason=reason)


def too_slow(doing: str, where: str, seconds: float) -> StoreError:
    """Return the error for a storage that did not respond within `seconds`."""
    return StoreError(f"{doing} failed in {where}: no answer within {seconds:g} seconds.", reason="slow")


def _advice(bucket: str, said: str) -> tuple[str, StoreReason]:
    if _ROLE.search(said):
        return _NO_CREDENTIALS, "failed"
    found = _CODE.search(said)
    status = _STATUS.search(said)
    code = found[1] if found else f"status {status[1]}" if status else "no answer"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r}; create the bucket, or correct blobs.url.", "failed"
    if code in _CREDENTIALS or (not found and status and status[1] == "401"):
        return f"the credentials are refused ({code}); check blobs.key_id and blobs.secret.", "failed"
    if code in _REGION or (status and status[1] == "301"):
        return f"the bucket is in another region ({code}); set blobs.region.", "failed"
    if code == "AccessDenied" or (status and status[1] == "403"):
        wanted = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
        return f"access is denied ({code}); the key needs {wanted} on the bucket and the prefix.", "failed"
    if code in _FULL or (status and status[1] == "507"):
        return f"the storage is full ({code}); free space, or raise its quota.", "full"
    if code in _BUSY or (status and status[1] in ("429", "503")):
        return f"the storage refuses requests at the moment ({code}); try again later, or raise its rate limit.", "busy"
    if not found and not status and _UNREACHABLE.search(said):
        return "the storage cannot be reached; check blobs.endpoint and the network.", "failed"
    return f"{code}.", "failed"
