"""Contents in a bucket: which requests the store sends, in which order, and what it makes of the answers.

A server in this process takes the requests. What a real one does with them: `tests/contracts/test_s3.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest

from antiphon.config.state import BlobSettings
from antiphon.engine.ports.files import new_blob_key
from antiphon.errors import StoreError
from antiphon.stores.blobs.s3 import S3BlobReader, S3Blobs, store_error
from tests.contracts.blob_contract import BlobStoreContract, Left, got, put
from tests.support.s3_server import Asked, S3Server, s3_server
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
        with pytest.raises(StoreError, match=r"Storing a file failed .*AccessDenied"):
            await writer.write(b"x" * 60)
        for late in (writer.write(b"x"), writer.seal()):
            with pytest.raises(StoreError, match="AccessDenied"):
                await late
    server.refuse = lambda asked: None
    with pytest.raises(StoreError, match="A part of a deleted file may still appear"):
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
    with pytest.raises(
        StoreError,
        match=r"Opening a file failed in s3://contents/t .*its content is missing. Restore the content, or delete",
    ):
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
        for more, size in ((8, 8 * MIB), (8, 4 * MIB), (48, MIB), (449, MIB // 8)):
            for _ in range(more):
                await opened.enter_async_context(blobs.writing(new_blob_key()))
            assert blobs.piece == size
    assert blobs.piece == 8 * MIB
    made = await put(blobs, b"x")
    readers: list[S3BlobReader] = []
    for count, size in ((32, 2 * MIB), (64, MIB), (513, MIB // 8)):
        while len(readers) < count:
            readers.append(await blobs.open(made.key))
        assert blobs.stretch == size
    for reader in readers:
        await reader.aclose()
        await reader.aclose()
    assert blobs.stretch == 2 * MIB


MANY = 7 * MIB
"""In three pieces: of three MiB, of three, of one."""
STRETCH = 2 * MIB


@pytest.fixture(scope="module")
def whole() -> bytes:
    return random.Random(1).randbytes(MANY)


@pytest.fixture
async def reader(server: S3Server, whole: bytes) -> AsyncIterator[S3BlobReader]:
    key = new_blob_key()
    for number, name in enumerate(("000000", "000001", "000002-last")):
        server.objects[f"t/{key}/{name}"] = whole[3 * number * MIB : 3 * (number + 1) * MIB]
    opened = await S3Blobs(server.settings()).open(key)
    server.asked.clear()
    yield opened
    await opened.aclose()


def ranges(server: S3Server) -> list[tuple[int, int, int]]:
    """The ranges that were asked for since this was called last: piece, first byte, and the one after the last."""
    found = []
    for one in server.asked:
        start, _, last = one.headers["range"].removeprefix("bytes=").partition("-")
        found.append((int(one.path.rpartition("/")[2].removesuffix("-last")), int(start), int(last) + 1))
    server.asked.clear()
    return sorted(found)


async def test_a_reader_that_reads_on_gets_a_stretch_and_the_next_one_in_advance(
    server: S3Server, reader: S3BlobReader, whole: bytes
) -> None:
    async def read(start: int, limit: int, requests: int) -> list[tuple[int, int, int]]:
        assert await reader.read(start, limit) == whole[start : start + limit]
        await until(lambda: len(server.asked) >= requests)
        return ranges(server)

    # The first read may be the only one.
    assert await read(0, 100, 1) == [(0, 0, 100)]
    first = 100 + STRETCH
    ahead = [(0, first, 3 * MIB), (1, 0, first + STRETCH - 3 * MIB)]
    assert await read(100, 50, 3) == [(0, 100, first), *ahead]
    assert await read(200, 50, 0) == await read(100, 50, 0) == await read(first - 50, 50, 0) == []
    # Over the end of the stretch: the next one is there, and the one after that is asked for.
    assert await read(first - 10, 30, 2) == [(1, first + STRETCH - 3 * MIB, 3 * MIB), (2, 0, 100)]
    # To the end of the content, and no further.
    at = first + STRETCH
    assert await read(at - 5, 10, 1) == [(2, 100, MIB)]
    assert await read(MANY - 10, 20, 1) == [(2, MIB - 10, MIB)]
    assert await read(MANY, 20, 0) == []


async def test_a_reader_that_goes_elsewhere_gets_what_it_asks_for_and_no_more(
    server: S3Server, reader: S3BlobReader, whole: bytes
) -> None:
    await reader.read(0, 10)
    await reader.read(10, 10)
    await until(lambda: len(server.asked) == 4)
    ranges(server)
    for start in (5 * MIB, 4 * MIB, 0, 6 * MIB):
        assert await reader.read(start, 10) == whole[start : start + 10]
        piece, at = divmod(start, 3 * MIB)
        assert ranges(server) == [(piece, at, at + 10)]


async def test_a_reader_that_goes_on_elsewhere_reads_on_from_there(
    server: S3Server, reader: S3BlobReader, whole: bytes
) -> None:
    at = 3 * MIB
    await reader.read(at, 10)
    assert await reader.read(at + 10, 10) == whole[at + 10 : at + 20]
    await until(lambda: len(server.asked) == 4)
    assert ranges(server) == [
        (1, 0, 10),
        (1, 10, 10 + STRETCH),
        (1, 10 + STRETCH, 3 * MIB),
        (2, 0, MIB),
    ]


@pytest.mark.parametrize(
    ("start", "limit", "expected"),
    [
        (0, STRETCH, [(0, 0, 2 * MIB)]),
        (0, STRETCH + 1, [(0, 0, 2 * MIB), (0, 2 * MIB, 2 * MIB + 1)]),
        (MIB, 5 * MIB, [(0, MIB, 3 * MIB), (1, 0, 2 * MIB), (1, 2 * MIB, 3 * MIB)]),
        (5, MANY, [(0, 5, 2 * MIB + 5), (0, 2 * MIB + 5, 3 * MIB), (1, 0, MIB + 5), (1, MIB + 5, 3 * MIB)]),
    ],
    ids=["a stretch", "more", "three", "all"],
)
async def test_a_large_range_is_read_in_stretches(
    server: S3Server, reader: S3BlobReader, whole: bytes, start: int, limit: int, expected: list[tuple[int, int, int]]
) -> None:
    assert await reader.read(start, limit) == whole[start : start + limit]
    assert [one for one in ranges(server) if one[0] < 2] == expected


async def test_four_stretches_of_a_large_range_are_asked_for_at_once(server: S3Server) -> None:
    go_on = asyncio.Event()
    under_way: list[int] = []

    async def hold(asked: Asked) -> None:
        under_way.append(1)
        await go_on.wait()

    key = new_blob_key()
    server.objects[f"t/{key}/000000-last"] = b"x" * (12 * MIB)
    opened = await S3Blobs(server.settings()).open(key)
    server.hold = hold
    reading = asyncio.create_task(opened.read(0, 12 * MIB))
    await until(lambda: len(under_way) == 4)
    go_on.set()
    assert await reading == b"x" * (12 * MIB)
    assert len(under_way) == 6
    await opened.aclose()


async def test_closing_does_not_wait_for_what_is_read_in_advance(server: S3Server, reader: S3BlobReader) -> None:
    asked: list[Asked] = []

    async def hold(one: Asked) -> None:
        asked.append(one)
        if len(asked) > 1:
            await server.ended.wait()

    await reader.read(0, 10)
    server.hold = hold
    await reader.read(10, 10)
    await until(lambda: len(asked) == 2)
    await reader.aclose()
    with pytest.raises(StoreError, match="This file is closed"):
        await reader.read(0, 1)


async def test_what_is_asked_at_the_start(server: S3Server) -> None:
    """Each right that contents need is used once, in an order in which nothing is made before all is known."""
    await S3Blobs(server.settings()).check()
    assert [(one.method, one.path) for one in server.asked] == [("GET", ""), ("PUT", "t/check/0"), ("POST", "")]
    assert server.asked[0].query["prefix"] == "t/check/"
    assert b"<Key>t/check/0</Key>" in server.asked[2].body
    assert not server.objects


@pytest.mark.parametrize(
    ("method", "doing"), [("GET", "Looking for a file"), ("PUT", "Storing a file"), ("POST", "Deleting a file")]
)
async def test_a_right_that_is_lacking_is_told_at_the_start(server: S3Server, method: str, doing: str) -> None:
    server.refuse = lambda asked: (403, "AccessDenied") if asked.method == method else None
    with pytest.raises(StoreError, match=rf"^{doing} failed in s3://contents/t \(http://.*: access is denied"):
        await S3Blobs(server.settings()).check()


async def test_deleting_what_is_not_there_deletes_nothing(server: S3Server, blobs: S3Blobs) -> None:
    await blobs.delete(new_blob_key())
    assert [one.method for one in server.asked] == ["GET"]


@pytest.mark.parametrize(
    ("given", "in_path", "key"),
    [
        ({}, True, "t/check/0"),
        ({"path_style": True}, True, "t/check/0"),
        ({"path_style": False}, False, "t/check/0"),
        ({"url": "s3://contents"}, True, "check/0"),
        ({"url": "s3://contents/a/b"}, True, "a/b/check/0"),
    ],
)
async def test_where_the_bucket_and_the_prefix_stand(
    server: S3Server, given: dict[str, Any], in_path: bool, key: str
) -> None:
    await S3Blobs(server.settings(**given)).check()
    assert [(one.in_path, one.path) for one in server.asked if one.method == "PUT"] == [(in_path, key)]


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
async def test_what_requests_are_signed_for(server: S3Server, monkeypatch: pytest.MonkeyPatch, region: str) -> None:
    """The key and the region of the settings; the key of the environment where they name none."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOTHER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    day = datetime.now(UTC).year
    for given, key_id in (({}, "AKIDTESTS"), ({"key_id": None, "secret": None}, "AKIDOTHER")):
        await S3Blobs(server.settings(region=region, **given)).check()
        signed = {one.headers["authorization"].partition(",")[0] for one in server.asked}
        assert len(signed) == 1
        name, _, scope = signed.pop().partition(f"/{day}")
        assert name == f"AWS4-HMAC-SHA256 Credential={key_id}"
        assert scope[4:] == f"/{region}/s3/aws4_request"
        server.asked.clear()


@pytest.mark.full
async def test_a_request_is_tried_three_times(server: S3Server) -> None:
    blobs = S3Blobs(server.settings())
    server.refuse = lambda asked: (503, "SlowDown") if len(server.asked) < 3 else None
    assert await blobs.pieces("check") == {}
    server.asked.clear()
    server.refuse = lambda asked: (503, "SlowDown")
    with pytest.raises(StoreError, match="refuses requests at the moment") as raised:
        await blobs.pieces("check")
    assert raised.value.reason == "busy" and len(server.asked) == 3


@pytest.mark.full
async def test_a_storage_that_does_not_answer_is_waited_for_as_long_as_the_settings_say(server: S3Server) -> None:
    async def hold(asked: Asked) -> None:
        await server.ended.wait()

    server.hold = hold
    with pytest.raises(StoreError, match=r"^Looking for a file failed in .*: no answer within 1 seconds\.$") as raised:
        await S3Blobs(server.settings(seconds=1)).check()
    assert raised.value.reason == "slow"


async def test_a_storage_that_is_not_there_cannot_be_reached() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
        given = {"url": "s3://contents", "endpoint": nobody, "key_id": "AKIDTESTS", "secret": "a-secret"}
        with pytest.raises(StoreError, match=r"the storage cannot be reached; check blobs.endpoint and the network"):
            await S3Blobs(BlobSettings.model_validate(given)).check()


def of_code(*codes: str) -> list[str]:
    return [f"status code: 400 Bad Request: <Error><Code>{code}</Code></Error>" for code in codes]


SAID = {
    "there is no bucket 'b'; create the bucket, or correct blobs.url": ("failed", of_code("NoSuchBucket")),
    "the credentials are refused": (
        "failed",
        [
            *of_code(
                "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId"
            ),
            "status code: 401 Unauthorized",
        ],
    ),
    "set blobs.region": (
        "failed",
        [
            *of_code("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"),
            "status code: 301 Moved Permanently",
        ],
    ),
    "s3:ListBucket, s3:GetObject, s3:PutObject and s3:DeleteObject": (
        "failed",
        [*of_code("AccessDenied"), "status code: 403 Forbidden"],
    ),
    "the storage is full": (
        "full",
        [
            *of_code("QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded", "InsufficientStorage"),
            "status code: 507 Insufficient Storage",
        ],
    ),
    "the storage refuses requests at the moment": (
        "busy",
        [
            *of_code("SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "TooManyRequests"),
            "status code: 429 Too Many Requests",
            "status code: 503 Service Unavailable",
        ],
    ),
    "no credentials were found; set blobs.key_id and blobs.secret": (
        "failed",
        [
            "PUT http://169.254.169.254/latest/api/token - status code: 403",
            "GET http://169.254.170.2/x: timed out",
            "GET http://169.254.170.23/x: timed out",
        ],
    ),
    "the storage cannot be reached; check blobs.endpoint and the network": (
        "failed",
        ["kind: Connect", "a dns error: x", "tcp connect error: x", "ConnectError(x)"],
    ),
    "in here: InternalError.": ("failed", of_code("InternalError")),
    "in here: status 500.": ("failed", ["status code: 500 Internal Server Error, after a dns error"]),
    "in here: no answer.": ("failed", ["something else, with secret words", "<Code>secret words</Code>"]),
}


@pytest.mark.parametrize("advice", SAID)
def test_what_a_storage_says_is_told_by_its_code_alone(advice: str) -> None:
    reason, answers = SAID[advice]
    for answer in answers:
        error = store_error("Reading a file", "here", "b", ValueError(answer))
        assert str(error).startswith("Reading a file failed in here: ")
        assert advice in str(error) and error.reason == reason, answer
        assert "secret words" not in str(error)
