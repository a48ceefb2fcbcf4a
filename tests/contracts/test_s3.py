"""Runs the contracts of blobs and files on a real S3 server, and tests the remains of a killed process and the errors
of an unusable storage.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path

import pytest

from antiphon.config.state import BlobSettings, StateSettings
from antiphon.engine.ports.files import new_blob_key
from antiphon.errors import OwnerFull, StoreError
from antiphon.stores import open_stores
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.s3 import S3Blobs
from antiphon.stores.files import FileStore
from antiphon.stores.sqlite.backend import SqliteStores, open_sqlite
from tests.contracts.blob_contract import BlobStoreContract, Left, got, put
from tests.contracts.file_contract import OWNER_BYTES, FileStoreContract, content, fields, keep
from tests.contracts.store_contract import ALICE, CHAIN_ITEMS
from tests.contracts.store_process import child_environment
from tests.contracts.test_files_disk import pending, run_out
from tests.support.seaweed import KEY_ID, SECRET, SeaweedServer
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(seaweed: SeaweedServer) -> BlobSettings:
    return seaweed.settings()


@pytest.fixture
def left(seaweed: SeaweedServer, settings: BlobSettings) -> Left:
    async def look() -> list[str]:
        return await asyncio.to_thread(seaweed.keys, settings)

    return look


@pytest.fixture
async def stores(tmp_path: Path, settings: BlobSettings) -> AsyncIterator[SqliteStores]:
    opened = await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS, owner_file_bytes=OWNER_BYTES, blobs=S3Blobs(settings))
    yield opened
    await opened.aclose()


class TestS3Blobs(BlobStoreContract):
    @pytest.fixture
    async def blobs(self, settings: BlobSettings) -> AsyncIterator[S3Blobs]:
        async with aclosing(S3Blobs(settings)) as opened:
            yield opened

    @pytest.fixture
    async def peer(self, settings: BlobSettings) -> AsyncIterator[S3Blobs]:
        async with aclosing(S3Blobs(settings)) as opened:
            yield opened


class TestS3Files(FileStoreContract):
    reads_on = False

    @pytest.fixture
    def store(self, stores: SqliteStores) -> FileStore:
        return stores.files

    @pytest.fixture
    async def peer(self, stores: SqliteStores, tmp_path: Path, settings: BlobSettings) -> AsyncIterator[FileStore]:
        opened = await open_sqlite(
            tmp_path, chain_items=CHAIN_ITEMS, owner_file_bytes=OWNER_BYTES, blobs=S3Blobs(settings)
        )
        yield opened.files
        await opened.aclose()


async def test_nothing_is_left_of_what_is_gone(stores: SqliteStores, left: Left) -> None:
    await keep(stores.files, fields("a"), b"x" * (9 << 20))
    assert [len(path.rpartition("/")[2]) for path in sorted(await left())] == [6, 11]
    async with stores.files.uploading() as upload:
        await upload.write(b"y" * (17 << 20))
    with pytest.raises(OwnerFull):
        await keep(stores.files, fields("b"), b"x" * (OWNER_BYTES + 1))
    assert len(await left()) == 2
    assert await stores.files.delete(ALICE, "file-a")
    assert await left() == [] and await pending(stores) == []


CHILD = """
import asyncio, json, sys, time
from pathlib import Path
from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import FileFields
from antiphon.stores.blobs.s3 import S3Blobs
from antiphon.stores.sqlite.backend import open_sqlite

async def main():
    settings = BlobSettings.model_validate(json.loads(sys.argv[2]))
    stores = await open_sqlite(Path(sys.argv[1]), chain_items=10, blobs=S3Blobs(settings))
    run = stores.tables.writer.run

    async def never(statements, **more):
        print("sealed", flush=True)
        await asyncio.Event().wait()

    async with stores.files.uploading() as half, stores.files.uploading() as whole:
        # The upload has three parts. One part is stored, and the others are being sent or held back.
        await half.write(b"h" * (20 << 20))
        await half.blob.content._until_sent(1)
        await whole.write(b"w" * (9 << 20))
        stores.tables.writer.run = never
        await whole.keep("alice", FileFields("file-a", "a", "user_data", "text/plain", time.time()))

asyncio.run(main())
"""


async def test_a_killed_process_leaves_nothing_after_a_sweep(
    stores: SqliteStores, tmp_path: Path, settings: BlobSettings, left: Left
) -> None:
    await keep(stores.files, fields("mine"), b"x")
    given = {**settings.model_dump(mode="json"), "key_id": KEY_ID, "secret": SECRET}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CHILD, str(tmp_path), json.dumps(given)),
        stdout=asyncio.subprocess.PIPE,
        env=child_environment(),
    )
    assert child.stdout is not None
    assert await child.stdout.readline() == b"sealed\n"
    child.kill()
    assert await child.wait() == -9
    assert len(await left()) >= 1 + 2 + 1
    assert await stores.files.sweep() == (0, 0)  # The content may become a file.
    await run_out(stores)
    assert await stores.files.sweep() == (0, 2)
    assert len(await left()) == 1 and await pending(stores) == []
    assert await content(stores.files, "file-mine") == b"x"


async def test_a_piece_that_may_come_late_is_looked_for_again(stores: SqliteStores, left: Left) -> None:
    """A request whose answer was lost may take effect after its content was deleted."""
    blobs = stores.files.blobs
    assert isinstance(blobs, S3Blobs)
    put_object = blobs.put
    sent: list[tuple[str, bytes]] = []

    async def lost(path: str, data: bytes) -> None:
        sent.append((path, data))
        raise StoreError("No answer.")

    blobs.put = lost  # type: ignore[method-assign]
    with pytest.raises(StoreError, match="No answer"):
        await keep(stores.files, fields("a"), b"x")
    await put_object(*sent[0])
    assert len(await left()) == len(await pending(stores)) == 1
    await run_out(stores)
    assert await stores.files.sweep() == (0, 1)
    assert await left() == [] and await pending(stores) == []


async def test_a_content_that_lacks_a_piece_is_none(settings: BlobSettings, left: Left) -> None:
    blobs = S3Blobs(settings)
    for lost in (0, 1, 2):
        made = await put(blobs, b"x" * (20 << 20))
        await blobs.remove([sorted(await left())[lost]])
        with pytest.raises(StoreError, match="its content is missing"):
            await blobs.open(made.key)
        await blobs.delete(made.key)
        assert await left() == []


async def test_contents_of_more_pieces_than_a_list_holds(settings: BlobSettings, left: Left) -> None:
    blobs = S3Blobs(settings, piece=512, least=512)
    whole = random.Random(1).randbytes(600_000)
    made = await put(blobs, whole)
    assert len(await left()) == 1172
    assert await got(blobs, made.key) == whole
    await blobs.delete(made.key)
    assert await left() == []


async def test_many_open_at_once_hold_little_each(settings: BlobSettings) -> None:
    blobs = S3Blobs(settings)
    assert (blobs.piece, blobs.stretch) == (8 << 20, 2 << 20)
    whole = random.Random(2).randbytes(3 << 20)
    async with AsyncExitStack() as opened:
        writers = [await opened.enter_async_context(blobs.writing(new_blob_key())) for _ in range(64)]
        assert blobs.piece == 1 << 20
        for writer in writers:
            await writer.write(whole[: 2 << 20])
        assert max(writer.held_size for writer in writers) == 1 << 20
        for writer in writers[1:]:
            await writer.seal()
        await opened.enter_async_context(blobs.writing(new_blob_key()))
        await writers[0].write(whole[2 << 20 :])
        made = await writers[0].seal()
    assert blobs.piece == 8 << 20
    readers = [await blobs.open(made.key) for _ in range(1000)]
    assert blobs.stretch == 128 << 10
    assert await readers[0].read(0, 1 << 20) + await readers[0].read(1 << 20, 2 << 20) == whole
    for reader in readers:
        await reader.aclose()
        await reader.aclose()
    assert blobs.stretch == 2 << 20


async def test_one_that_goes_while_it_is_read_is_an_error(settings: BlobSettings) -> None:
    blobs = S3Blobs(settings)
    made = await put(blobs, b"x" * (9 << 20))
    reader = await blobs.open(made.key)
    assert await reader.read(0, 10) == b"x" * 10
    await blobs.delete(made.key)
    with pytest.raises(StoreError, match="Reading a file failed"):
        await reader.read(5 << 20, 10)
    await reader.aclose()


@pytest.fixture
def deaf() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def _nobody() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


UNUSABLE = {
    "no such bucket": (
        {"url": "s3://none-such/x"},
        "there is no bucket 'none-such'; create the bucket, or correct blobs.url",
    ),
    "wrong secret": ({"secret": "wrong-" * 5}, "credentials are refused .SignatureDoesNotMatch.; check blobs.key_id"),
    "wrong key id": (
        {"key_id": "AKIDNOBODY000000"},
        "credentials are refused .InvalidAccessKeyId.; check blobs.key_id",
    ),
    "nobody there": ({"endpoint": _nobody()}, "cannot be reached; check blobs.endpoint and the network"),
    "no such host": ({"endpoint": "http://none.invalid:9000"}, "cannot be reached; check blobs.endpoint"),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_a_storage_that_cannot_be_used_says_what_to_do(seaweed: SeaweedServer, tmp_path: Path, name: str) -> None:
    """The error appears at the start of a server, and does not contain the key."""
    given, said = UNUSABLE[name]
    chosen = seaweed.settings(**given)
    with pytest.raises(StoreError, match=said) as raised:
        await open_stores(StateSettings(), tmp_path, chain_items=CHAIN_ITEMS, blobs=chosen)
    whole = str(raised.value) + repr(raised.value.__cause__) + repr(chosen)
    for secret in (chosen.key_id, chosen.secret):
        assert secret is not None and secret.get_secret_value() not in whole
    assert raised.value.__cause__ is None


async def test_a_storage_that_stands_still_is_waited_for_so_long(seaweed: SeaweedServer, deaf: str) -> None:
    with pytest.raises(StoreError, match="no answer within 1 seconds") as raised:
        await open_blobs(seaweed.settings(endpoint=deaf, seconds=1), Path())
    assert raised.value.reason == "slow"


async def test_a_storage_that_fails_fails_the_upload_and_nothing_else(
    stores: SqliteStores, tmp_path: Path, left: Left
) -> None:
    await keep(stores.files, fields("a"), b"x")
    bucket = {"url": "s3://contents/x", "endpoint": _nobody(), "key_id": KEY_ID, "secret": SECRET}
    unreachable = S3Blobs(BlobSettings.model_validate(bucket))
    async with aclosing(await open_sqlite(tmp_path, chain_items=CHAIN_ITEMS, blobs=unreachable)) as cut_off:
        with pytest.raises(StoreError, match="cannot be reached"):
            await keep(cut_off.files, fields("b"), b"x" * (30 << 20))
        with pytest.raises(StoreError, match="cannot be reached"):
            await cut_off.files.open(ALICE, "file-a")
        assert await cut_off.files.delete(ALICE, "file-a")
        assert await cut_off.files.get(ALICE, "file-a") is None
    await run_out(stores)
    assert sum(await stores.files.sweep()) == 2
    assert await left() == [] and await pending(stores) == []


async def test_an_upload_holds_no_more_than_so_many_pieces(settings: BlobSettings) -> None:
    """The limit holds for a fast client and a slow storage."""
    blobs = S3Blobs(settings)
    under_way, most, go_on = 0, 0, asyncio.Event()

    async def slow(path: str, data: bytes) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await go_on.wait()
        under_way -= 1

    blobs.put = slow  # type: ignore[method-assign]

    async def upload(key: str) -> None:
        async with blobs.writing(key) as writer:
            for _ in range(40):
                await writer.write(b"x" * (1 << 20))
            await writer.seal()

    tasks = [asyncio.create_task(upload(new_blob_key())) for _ in range(12)]
    await until(lambda: under_way == 16)
    for _ in range(100):
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(*tasks)
    assert most == 16
