"""Stores file contents in an S3 bucket.

Lives here: writing, opening and deleting, and the classification of failures. Not here: which contents are needed
(`pending.py`).

A content is several objects: `<prefix>/<key>/000000`, `000001`, …, of 8 MiB each, or less while many uploads are open.
The last one has the suffix `-last` (`000007-last`), and the writer writes it when all others are stored.

S3's multipart uploads would give one object. But the parts of an unfinished upload are in no list of objects. Only the
upload's id can abort it, and the client library does not expose the id. The pieces of an unfinished content are listed
under its key like those of a finished one. So one deletion by key removes them all, even if their writer crashed.

Invariants: a content without a last piece is never read. An upload buffers one piece and has `_SENDING` requests in
progress; all uploads together have `_SENDING_ALL`. A download buffers one stretch and has one request in progress.
Pieces and stretches shrink when many are open, so the sum of all buffers stays bounded (`_share`). Every request has a
deadline. A closed writer sends no piece. If a piece may still arrive late, its content does not count as deleted at
once. Messages show only an error code (letters) of the server or the library. So no key, signature or foreign address
reaches a log or a response.
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
# The buffers of all uploads, and of all downloads, of a process together, unless each already has the minimum.
_HELD_ALL = 64 << 20
LEAST = 128 << 10
_FETCHING = 4
_TRIES = 3
_CHECK = "check"
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_STATUS = re.compile(r"status code: (\d{3})\b")
_UNREACHABLE = re.compile(r"kind: Connect\b|dns error|tcp connect error|ConnectError")
# The addresses that a client asks for a role's credentials when no others are configured.
_ROLE = re.compile(r"//169\.254\.(169\.254|170\.2|170\.23)\b")

_NO_CREDENTIALS = "no credentials were found; set blobs.key_id and blobs.secret."
_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"}
)
_REGION = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"})
_FULL = frozenset({"QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"})
_BUSY = frozenset({"SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "TooManyRequests"})


class S3Blobs:
    """`BlobStore` in one bucket, which any number of machines may share."""

    def __init__(self, settings: BlobSettings, piece: int = PIECE, least: int = LEAST) -> None:
        """`settings` must have a `url`. Does not connect yet. `piece`: the bytes of a piece of an upload. While many
        uploads are open, pieces shrink, but not below `least`."""
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
        """The current size of an upload's pieces in bytes."""
        return _share(self._piece, self._uploads, self._least)

    @property
    def stretch(self) -> int:
        """The current number of bytes per read of a download."""
        return _share(_STRETCH, self._downloads, self._least)

    async def check(self) -> None:
        """Check that the credentials allow every operation on contents. Raises `StoreError` with advice."""
        path = f"{_CHECK}/0"
        # Lists first: some servers create a missing bucket on the first write.
        await self.pieces(_CHECK)
        await self.put(path, b"antiphon")
        await self.remove([path])

    @asynccontextmanager
    async def writing(self, key: str) -> AsyncIterator[S3BlobWriter]:
        """Begin a content under a new key."""
        writer = S3BlobWriter(self, checked_key(key), self._sending)
        self._uploads += 1
        try:
            yield writer
        finally:
            self._uploads -= 1
            if await to_the_end(writer.close()):
                self._late.add(key)

    async def open(self, key: str) -> S3BlobReader:
        """Open a content. Raises `StoreError` when it does not exist."""
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
        """Called when a reader closes."""
        self._downloads -= 1

    async def delete(self, key: str) -> None:
        """Delete all pieces of a content, if any."""
        # Even if this succeeds, the sweep deletes it again later, when no piece can arrive any more.
        late = key in self._late
        self._late.discard(key)
        pieces = await self.pieces(checked_key(key))
        if pieces:
            await self.remove([f"{key}/{name}" for name in pieces])
        if late:
            raise StoreError(
                f"It is uncertain that a file in {self._where} is deleted: a piece that was sent may still arrive."
            )

    async def aclose(self) -> None:
        """Do nothing: the client library closes idle connections itself."""

    async def put(self, path: str, data: bytes) -> None:
        """Write one object."""
        await self._ask("Storing a file", lambda: self._store.put_async(path, data, use_multipart=False))

    async def fetch(self, path: str, start: int, end: int) -> bytes:
        """The bytes `start` to `end` of one object."""
        got = await self._ask("Reading a file", lambda: self._store.get_range_async(path, start=start, end=end))
        return got.to_bytes()

    async def pieces(self, key: str) -> dict[str, int]:
        """The stored pieces of a content and their sizes, in order."""

        async def found() -> dict[str, int]:
            return {
                one["path"].rpartition("/")[2]: one["size"]
                async for some in self._store.list(prefix=key)
                for one in some
            }

        return dict(sorted((await self._ask("Looking for a file", found)).items()))

    async def remove(self, paths: list[str]) -> None:
        """Delete these objects."""
        await self._ask("Deleting a file", lambda: self._store.delete_async(paths))

    async def _ask(self, doing: str, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request. Raises `StoreError` when it fails, without the library's message."""
        try:
            async with asyncio.timeout(self._seconds):
                return await request()
        except TimeoutError:
            raise too_slow(doing, self._where, self._seconds) from None
        except (BaseError, OSError, ValueError) as error:
            raise store_error(doing, self._where, self._bucket, error) from None


class S3BlobWriter:
    """The upload of one file's content, before it is complete."""

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
        """Append; waits while the maximum of pieces is in progress."""
        self._check()
        self.size += len(data)
        view = memoryview(data)
        while view:
            # A full piece waits for further data, because the last one has a different name.
            if self.held_size >= self._blobs.piece:
                await self._send("")
            some = bytes(view[: self._blobs.piece - self.held_size])
            view = view[len(some) :]
            self._hash.update(some)
            self._held.append(some)
            self.held_size += len(some)

    async def seal(self) -> Blob:
        """Write the last piece after all others are stored."""
        self._check()
        await self._until_sent(0)
        await self._send(_LAST)
        await self._until_sent(0)
        self._closed = True
        return Blob(self._key, self.size, self._hash.hexdigest())

    async def close(self) -> bool:
        """Stop sending, and wait for the requests in progress. Returns whether a failed piece may still arrive."""
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
            self._failure = error if isinstance(error, StoreError) else StoreError("Storing a file failed.")

    async def _until_sent(self, most: int) -> None:
        """Wait until at most `most` pieces are in progress."""
        while len(self._sending) > most:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StoreError("This file is closed.")


class S3BlobReader:
    """An open content in the bucket. For a reader that reads sequentially, it fetches the next stretch in advance."""

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
        """Bytes from `start`: `limit` of them, or fewer at the end."""
        if self._closed:
            raise StoreError("This file is closed.")
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
        """Close the content."""
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
        """A large range: several stretches in parallel."""
        most = min(end, start + _FETCHING * _STRETCH)
        spans = [(at, min(at + _STRETCH, most)) for at in range(start, most, _STRETCH)]
        return b"".join(await asyncio.gather(*(self._fetch(*span) for span in spans)))

    async def _short(self, start: int, end: int) -> bytes:
        """Bytes from `start`, at most up to `end`."""
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
                # The first read of its kind: the reader may not want the bytes after it.
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
        """Exactly the bytes from `start` to `end`."""
        parts = []
        while start < end:
            number = bisect_right(self._starts, start) - 1
            path, size = self._pieces[number]
            first = self._starts[number]
            part = await self._blobs.fetch(path, start - first, min(end - first, size))
            if not part:
                raise StoreError("A stored file is shorter than it was.")
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
    """The error for the failure of `doing` (a gerund) at the storage `where`."""
    advice, reason = _advice(bucket, str(error))
    return StoreError(f"{doing} failed in {where}: {advice}", reason=reason)


def too_slow(doing: str, where: str, seconds: float) -> StoreError:
    """The error for a storage that did not answer in time."""
    return StoreError(f"{doing} failed in {where}: no answer within {seconds:g} seconds.", reason="slow")


def _advice(bucket: str, said: str) -> tuple[str, StoreReason]:
    if _ROLE.search(said):
        return _NO_CREDENTIALS, "failed"
    found = _CODE.search(said)
    status = _STATUS.search(said)
    code = found[1] if found else f"status {status[1]}" if status else "no answer"
    if code == "NoSuchBucket":
        return f"there is no bucket {bucket!r}; create it, or correct blobs.url.", "failed"
    if code in _CREDENTIALS or (not found and status and status[1] == "401"):
        return f"the credentials are refused ({code}); check blobs.key_id and blobs.secret.", "failed"
    if code in _REGION or (status and status[1] == "301"):
        return f"the bucket is in another region ({code}); set blobs.region.", "failed"
    if code == "AccessDenied" or (status and status[1] == "403"):
        wanted = "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject"
        return f"access is denied ({code}); the key needs {wanted} on bucket and prefix.", "failed"
    if code in _FULL or (status and status[1] == "507"):
        return f"the storage is full ({code}); free space, or raise its quota.", "full"
    if code in _BUSY or (status and status[1] in ("429", "503")):
        return f"the storage refuses requests at the moment ({code}); try again later, or raise its rate limit.", "busy"
    if not found and not status and _UNREACHABLE.search(said):
        return "it cannot be reached; check blobs.endpoint and the network.", "failed"
    return f"{code}.", "failed"
