"""Contents in a bucket: which requests the store sends, in which order, and what it makes of the answers.

A server in this process takes the requests. What a real one does with them: `tests/contracts/test_s3.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from antiphon.engine.ports.files import new_blob_key
from antiphon.errors import StoreError
from antiphon.stores.blobs.s3 import S3Blobs
from tests.contracts.blob_contract import BlobStoreContract, Left, got, put
from tests.support.s3_server import S3Server, s3_server
from tests.support.waiting import until

MIB = 1 << 20


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    async with s3_server() as running:
        yield running


@pytest.fixture
def blobs(server: S3Server) -> S3Blobs:
    """Pieces of ten bytes, however many uploads are open."""
    return S3Blobs(server.settings(), piece=10, least=10)


@pytest.mark.full
class TestS3BlobsOfThisProcess(BlobStoreContract):
    @pytest.fixture
    def blobs(self, server: S3Server) -> S3Blobs:
        return S3Blobs(server.settings())

    @pytest.fixture
    def peer(self, server: S3Server) -> S3Blobs:
        return S3Blobs(server.settings())

    @pytest.fixture
    def left(self, server: S3Server) -> Left:
        async def look() -> list[str]:
            return list(server.objects)

        return look


@pytest.mark.parametrize(
    ("size", "sizes"),
    [(0, [0]), (1, [1]), (9, [9]), (10, [10]), (11, [10, 1]), (20, [10, 10]), (21, [10, 10, 1])],
)
async def test_a_content_is_pieces_of_which_the_last_one_has_another_name(
    server: S3Server, blobs: S3Blobs, size: int, sizes: list[int]
) -> None:
    whole = bytes(range(size))
    made = await put(blobs, whole[:7], whole[7:])
    names = [f"t/{made.key}/{number:06d}" for number in range(len(sizes))]
    names[-1] += "-last"
    assert {key: len(data) for key, data in server.objects.items()} == dict(zip(names, sizes, strict=True))
    assert (made.size, made.sha256) == (size, hashlib.sha256(whole).hexdigest())
    assert b"".join(server.objects[name] for name in names) == whole == await got(blobs, made.key)


async def test_the_last_piece_is_sent_when_all_others_are_stored(server: S3Server, blobs: S3Blobs) -> None:
    go_on = asyncio.Event()

    async def hold(asked: object) -> None:
        await go_on.wait()

    server.hold = hold
    writing = asyncio.create_task(put(blobs, b"x" * 25))
    await until(lambda: len(server.asked) == 2)
    server.hold = None
    assert not server.objects
    go_on.set()
    made = await writing
    assert [one.path.rpartition("/")[2] for one in server.asked][2:] == ["000002-last"]
    assert sorted(len(data) for data in server.objects.values()) == [5, 10, 10]
    assert await got(blobs, made.key) == b"x" * 25


async def test_an_upload_sends_two_pieces_at_once_and_holds_one_more(server: S3Server, blobs: S3Blobs) -> None:
    go_on = asyncio.Event()

    async def hold(asked: object) -> None:
        await go_on.wait()

    server.hold = hold
    async with blobs.writing(new_blob_key()) as writer:
        await writer.write(b"x" * 30)
        assert (writer.size, writer.held_size) == (30, 10)
        await until(lambda: len(server.asked) == 2)
        more = asyncio.create_task(writer.write(b"y"))
        await asyncio.sleep(0)
        assert not more.done() and len(server.asked) == 2
        go_on.set()
        await more
        assert writer.held_size == 1
        await writer.seal()
    assert len(server.objects) == 4


async def test_all_uploads_together_send_sixteen_pieces_at_once(server: S3Server, blobs: S3Blobs) -> None:
    go_on = asyncio.Event()
    under_way = most = 0

    async def hold(asked: object) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go_on.wait()
        under_way -= 1

    server.hold = hold
    uploads = [asyncio.create_task(put(blobs, b"x" * 45)) for _ in range(10)]
    await until(lambda: under_way == 16)
    go_on.set()
    await asyncio.gather(*uploads)
    assert most == 16 and len(server.objects) == 50


async def test_a_piece_that_fails_fails_the_upload_and_its_content_counts_as_late(
    server: S3Server, blobs: S3Blobs
) -> None:
    key = new_blob_key()
    server.refuse = lambda asked: (403, "AccessDenied") if asked.path.endswith("000001") else None
    async with blobs.writing(key) as writer:
        with pytest.raises(StoreError, match="Storing a file failed .*AccessDenied"):
            await writer.write(b"x" * 60)
        for late in (writer.write(b"x"), writer.seal()):
            with pytest.raises(StoreError, match="AccessDenied"):
                await late
    server.refuse = lambda asked: None
    with pytest.raises(StoreError, match="a piece that was sent may still come"):
        await blobs.delete(key)
    assert not server.objects
    await blobs.delete(key)
    # One that went well is deleted for sure at once.
    await blobs.delete((await put(blobs, b"x")).key)


async def test_leaving_waits_for_what_is_under_way_and_sends_no_more(server: S3Server, blobs: S3Blobs) -> None:
    go_on, left = asyncio.Event(), asyncio.Event()

    async def hold(asked: object) -> None:
        await go_on.wait()

    async def upload() -> None:
        async with blobs.writing(key) as writer:
            await writer.write(b"x" * 25)
        left.set()

    server.hold = hold
    key = new_blob_key()
    task = asyncio.create_task(upload())
    await until(lambda: len(server.asked) == 2)
    assert not left.is_set()
    go_on.set()
    await task
    assert sorted(len(data) for data in server.objects.values()) == [10, 10]
    with pytest.raises(StoreError, match="its content is missing"):
        await blobs.open(key)


@pytest.mark.parametrize("lost", ["000000", "000001", "000002-last"])
async def test_a_content_that_lacks_a_piece_is_none(server: S3Server, blobs: S3Blobs, lost: str) -> None:
    made = await put(blobs, b"x" * 25)
    del server.objects[f"t/{made.key}/{lost}"]
    with pytest.raises(StoreError, match="its content is missing. Restore the content, or delete the file"):
        await blobs.open(made.key)


async def test_pieces_are_in_order_however_they_are_listed(server: S3Server, blobs: S3Blobs) -> None:
    """Over several answers too."""
    server.page = 2
    whole = bytes(range(75))
    made = await put(blobs, whole)
    assert list(await blobs.pieces(made.key)) == [*(f"{number:06d}" for number in range(7)), "000007-last"]
    assert await got(blobs, made.key) == whole
    reader = await blobs.open(made.key)
    for start in range(75):
        assert await reader.read(start, 12) == whole[start : start + 12]
    await reader.aclose()
    await blobs.delete(made.key)
    assert not server.objects


@pytest.mark.full
async def test_buffers_shrink_when_many_are_open(server: S3Server) -> None:
    """All uploads share 64 MiB, all downloads another 64 MiB, and each has 128 KiB at least."""
    blobs = S3Blobs(server.settings())
    assert (blobs.piece, blobs.stretch) == (8 * MIB, 2 * MIB)
    async with AsyncExitStack() as opened:
        uploads = 0
        for count, size in ((8, 8 * MIB), (16, 4 * MIB), (64, MIB), (513, MIB // 8)):
            for uploads in range(uploads + 1, count + 1):
                await opened.enter_async_context(blobs.writing(new_blob_key()))
            assert blobs.piece == size
    assert blobs.piece == 8 * MIB
    made = await put(blobs, b"x")
    readers = []
    for count, size in ((32, 2 * MIB), (64, MIB), (513, MIB // 8)):
        while len(readers) < count:
            readers.append(await blobs.open(made.key))
        assert blobs.stretch == size
    for reader in readers:
        await reader.aclose()
        await reader.aclose()
    assert blobs.stretch == 2 * MIB
