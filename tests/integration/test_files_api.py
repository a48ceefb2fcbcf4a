"""Files over the HTTP door: every operation, every way to ask wrongly, what a stranger gets, and slow or vanishing
clients."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import openai
import pytest

from antiphon.stores import Stores
from tests.support.http_door import OpenHttpDoor, RawAnswer, RawClient, open_http_door
from tests.support.memory import forget_peak, peak
from tests.support.schemas import OPENAI, valid
from tests.support.state import open_state
from tests.support.waiting import until

BOUNDARY = "b0undary"
ALICE, BOB = "alice", "bob"
Field = tuple[str, bytes]
PURPOSE: Field = ('name="purpose"', b"user_data")
HELLO: Field = ('name="file"; filename="hello.txt"', b"hello\n")
CLOSING = len(f"\r\n--{BOUNDARY}--\r\n")
NONE = "file-" + "0" * 48
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    (tmp_path / "data").mkdir()
    opened = await open_state(tmp_path / "data", chain_items=10, owner_file_bytes=10 << 20)
    yield opened
    await opened.aclose()


@pytest.fixture
async def door(stores: Stores) -> AsyncIterator[OpenHttpDoor]:
    async with open_http_door(files=stores.files) as opened:
        yield opened


def form(*fields: Field) -> bytes:
    """A form's body."""
    parts = b"".join(
        b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n" % (BOUNDARY.encode(), head.encode(), content)
        for head, content in fields
    )
    return parts + b"--%b--\r\n" % BOUNDARY.encode()


def head(method: str, path: str, owner: str = ALICE, **headers: str) -> bytes:
    """A request's head."""
    named = {"host": "test", "authorization": f"Bearer {owner}"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def posted(body: bytes, owner: str = ALICE, **headers: str) -> bytes:
    """A whole upload."""
    headers = {"content_type": f"multipart/form-data; boundary={BOUNDARY}", "content_length": str(len(body)), **headers}
    return head("POST", "/v1/files", owner, **headers) + body


async def upload(door: OpenHttpDoor, *fields: Field, owner: str = ALICE) -> Any:
    """Upload a file; what the answer says of it."""
    answer = await door.ask(posted(form(*fields), owner))
    assert answer.status == 200, answer.body
    return answer.json


async def get(door: OpenHttpDoor, path: str, owner: str = ALICE, **headers: str) -> RawAnswer:
    """GET a path below `/v1/files`."""
    return await door.ask(head("GET", f"/v1/files{path}", owner, **headers))


def left_on_disk(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "data" / "files").rglob("*") if path.is_file()]


# Uploading


async def test_what_was_uploaded_is_read_back(door: OpenHttpDoor) -> None:
    made = await upload(door, PURPOSE, HELLO)
    assert not valid(OPENAI, "OpenAIFile", made)
    assert (made["filename"], made["bytes"], made["purpose"]) == ("hello.txt", 6, "user_data")
    assert made["id"].startswith("file-") and "expires_at" not in made
    assert (await get(door, f"/{made['id']}")).json == made
    answer = await get(door, f"/{made['id']}/content")
    assert (answer.status, answer.body) == (200, b"hello\n")


async def test_what_is_said_of_a_file_may_stand_behind_it(door: OpenHttpDoor) -> None:
    seconds: Field = ('name="expires_after[seconds]"', b"3600")
    made = await upload(door, HELLO, seconds, ('name="expires_after[anchor]"', b"created_at"), PURPOSE)
    assert made["expires_at"] == made["created_at"] + 3600


async def test_fields_that_are_none_of_the_apis_are_named(door: OpenHttpDoor) -> None:
    answer = await door.ask(posted(form(PURPOSE, ('name="color"', b"red" * 10_000), HELLO)))
    assert answer.status == 200 and answer.header("antiphon-ignored") == "color"


async def test_every_byte_of_a_larger_file(door: OpenHttpDoor) -> None:
    content = random.Random(1).randbytes(1 << 20)
    made = await upload(door, PURPOSE, ('name="file"; filename="a.bin"', content))
    answer = await get(door, f"/{made['id']}/content")
    assert answer.body == content
    assert answer.header("etag") == f'"{hashlib.sha256(content).hexdigest()}"'


async def test_a_chunked_upload(door: OpenHttpDoor) -> None:
    body = form(PURPOSE, HELLO)
    chunks = (
        b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:7], body[7:100], body[100:])) + b"0\r\n\r\n"
    )
    answer = await door.ask(
        head(
            "POST",
            "/v1/files",
            content_type=f"multipart/form-data; boundary={BOUNDARY}",
            transfer_encoding="chunked",
        )
        + chunks
    )
    assert answer.status == 200 and answer.json["bytes"] == 6


async def test_a_client_that_asks_first(door: OpenHttpDoor) -> None:
    body = form(PURPOSE, HELLO)
    async with door.client() as client:
        await client.send(posted(body, expect="100-continue")[: -len(body)])
        assert (await client.head()).status == 100
        await client.send(body)
        assert (await client.read()).status == 200


async def test_a_client_that_asks_first_is_refused_before_it_sends(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        await client.send(posted(b"", expect="100-continue", content_length=str(1 << 30)))
        assert (await client.head()).status == 413


@pytest.mark.parametrize("purpose", ["assistants", "user_data", "evals"])
async def test_purposes(door: OpenHttpDoor, purpose: str) -> None:
    made = await upload(door, ('name="purpose"', purpose.encode()), HELLO)
    assert made["purpose"] == purpose


async def test_purposes_that_want_a_kind_of_file(door: OpenHttpDoor) -> None:
    vision: Field = ('name="purpose"', b"vision")
    made = await upload(door, vision, ('name="file"; filename="a.dat"', PNG))
    assert (await get(door, f"/{made['id']}/content")).header("content-type") == "image/png"
    batch: Field = ('name="purpose"', b"batch")
    assert (await upload(door, batch, ('name="file"; filename="a.jsonl"', b"{}\n")))["purpose"] == "batch"


def one(name: str, content: bytes = b"x") -> Field:
    return (f'name="{name}"', content)


EXPIRES = one("expires_after[anchor]", b"created_at"), one("expires_after[seconds]", b"3600")
REFUSED: dict[str, tuple[tuple[Field, ...], str, str]] = {
    "no file": ((PURPOSE,), "file", "missing_required_parameter"),
    "no purpose": ((HELLO,), "purpose", "missing_required_parameter"),
    "unknown purpose": ((one("purpose", b"fun"), HELLO), "purpose", "invalid_value"),
    "purpose twice": ((PURPOSE, PURPOSE, HELLO), "purpose", "invalid_value"),
    "purpose without end": ((one("purpose", b"x" * 5000), HELLO), "purpose", "invalid_value"),
    "file is a field": ((PURPOSE, one("file")), "file", "invalid_value"),
    "two files": ((PURPOSE, HELLO, HELLO), "file", "invalid_value"),
    "no name": ((PURPOSE, ('name="file"; filename=""', b"x")), "file", "invalid_value"),
    "name is a folder": ((PURPOSE, ('name="file"; filename="a/.."', b"x")), "file", "invalid_value"),
    "vision, no picture": ((one("purpose", b"vision"), HELLO), "file", "invalid_value"),
    "batch, no lines": ((one("purpose", b"batch"), HELLO), "file", "invalid_value"),
    "no anchor": ((PURPOSE, HELLO, EXPIRES[1]), "expires_after[anchor]", "missing_required_parameter"),
    "no seconds": ((PURPOSE, HELLO, EXPIRES[0]), "expires_after[seconds]", "missing_required_parameter"),
    "wrong anchor": (
        (PURPOSE, HELLO, one("expires_after[anchor]", b"now"), EXPIRES[1]),
        "expires_after[anchor]",
        "invalid_value",
    ),
    "too few seconds": (
        (PURPOSE, HELLO, EXPIRES[0], one("expires_after[seconds]", b"3599")),
        "expires_after[seconds]",
        "invalid_value",
    ),
    "too many seconds": (
        (PURPOSE, HELLO, EXPIRES[0], one("expires_after[seconds]", b"2592001")),
        "expires_after[seconds]",
        "invalid_value",
    ),
    "no number": (
        (PURPOSE, HELLO, EXPIRES[0], one("expires_after[seconds]", b"1_0000")),
        "expires_after[seconds]",
        "invalid_value",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_leaves_nothing(door: OpenHttpDoor, tmp_path: Path, name: str) -> None:
    fields, param, code = REFUSED[name]
    answer = await door.ask(posted(form(*fields)))
    assert answer.status == 400, answer.body
    assert (answer.error["param"], answer.error["code"]) == (param, code)
    assert left_on_disk(tmp_path) == []
    assert (await get(door, "")).json["data"] == []


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content_type": "application/json"}, 415, "unsupported_content_type"),
        ({"content_type": "multipart/form-data"}, 400, "invalid_body"),
        ({"content_encoding": "gzip"}, 415, "unsupported_content_encoding"),
    ],
)
async def test_bodies_of_another_kind(door: OpenHttpDoor, headers: dict[str, str], status: int, code: str) -> None:
    answer = await door.ask(posted(form(PURPOSE, HELLO), **headers))
    assert (answer.status, answer.error["code"]) == (status, code)


async def test_a_form_without_end(door: OpenHttpDoor, tmp_path: Path) -> None:
    answer = await door.ask(posted(form(PURPOSE, HELLO)[:-20]))
    assert (answer.status, answer.error["code"]) == (400, "invalid_body")
    assert left_on_disk(tmp_path) == []


async def test_a_file_that_is_too_large(door: OpenHttpDoor, tmp_path: Path) -> None:
    """Said by its length it is refused at once, else during the upload; a file of just that size is none."""
    made = await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * (1 << 20)))
    assert made["bytes"] == 1 << 20
    answer = await door.ask(posted(form(PURPOSE, ('name="file"; filename="a"', b"x" * ((1 << 20) + 1)))))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (413, "file_too_large", "file")
    answer = await door.ask(posted(b"", content_length=str(1 << 30)))
    assert answer.status == 413 and answer.header("connection") == "close"
    async with door.client() as client:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        await client.send(head("POST", "/v1/files", content_type=kind, transfer_encoding="chunked"))
        start = form(PURPOSE, ('name="file"; filename="a"', b""))[:-CLOSING]
        await client.send(b"%x\r\n%b\r\n" % (len(start), start))
        for _ in range(20):
            await client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert (await client.head()).status == 413
    assert len(left_on_disk(tmp_path)) == 1


async def test_a_field_without_end(door: OpenHttpDoor) -> None:
    """What is no file counts as well: a form may not go on for ever beside it."""
    async with door.client() as client:
        kind = f"multipart/form-data; boundary={BOUNDARY}"
        await client.send(head("POST", "/v1/files", content_type=kind, transfer_encoding="chunked"))
        start = form(('name="color"', b""))[:-CLOSING]
        await client.send(b"%x\r\n%b\r\n" % (len(start), start))
        for _ in range(21):
            await client.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        assert (await client.head()).status == 413


async def test_no_more_than_an_owner_may_have(door: OpenHttpDoor, tmp_path: Path) -> None:
    for _ in range(10):
        await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * (1 << 20)))
    answer = await door.ask(posted(form(PURPOSE, HELLO)))
    assert (answer.status, answer.error["code"]) == (429, "storage_limit_exceeded")
    assert "'files.owner_bytes'" in answer.error["message"]
    assert len(left_on_disk(tmp_path)) == 10
    await upload(door, PURPOSE, HELLO, owner=BOB)


async def test_a_connection_goes_on_after_an_upload_and_a_refusal(door: OpenHttpDoor) -> None:
    async with door.client() as client:
        for fields, status in (((PURPOSE, HELLO), 200), ((HELLO,), 400), ((PURPOSE, HELLO), 200)):
            await client.send(posted(form(*fields)))
            assert (await client.read()).status == status


async def test_a_client_that_leaves_in_the_middle(door: OpenHttpDoor, tmp_path: Path) -> None:
    body = form(PURPOSE, ('name="file"; filename="a"', b"x" * 600_000))
    client = door.client()
    async with client:
        await client.send(posted(body)[:500_000])
        await until(lambda: [path for path in left_on_disk(tmp_path) if path.stat().st_size])
    await until(lambda: not left_on_disk(tmp_path))


async def test_a_client_that_stops_sending(stores: Stores, tmp_path: Path) -> None:
    async with open_http_door(files=stores.files, request_seconds=0.1) as door, door.client() as client:
        await client.send(posted(form(PURPOSE, HELLO))[:-30])
        answer = await client.read()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        await until(lambda: not left_on_disk(tmp_path))


async def test_a_full_disk(door: OpenHttpDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("antiphon.stores.blobs.disk.os.write", full)
    answer = await door.ask(posted(form(PURPOSE, HELLO)))
    assert (answer.status, answer.error["code"]) == (507, "insufficient_storage")
    assert "No space" not in answer.error["message"]
    assert left_on_disk(tmp_path) == []


async def test_names_lose_their_path_and_what_cannot_be_shown(door: OpenHttpDoor) -> None:
    made = await upload(door, PURPOSE, ('name="file"; filename="../../etc/na\u202eïve\t漢.txt"', b"x"))
    assert made["filename"] == "naïve漢.txt"
    answer = await get(door, f"/{made['id']}/content")
    found = "attachment; filename=\"na_ve_.txt\"; filename*=UTF-8''na%C3%AFve%E6%BC%A2.txt"
    assert answer.header("content-disposition") == found


async def test_what_the_store_does_is_counted(door: OpenHttpDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await upload(door, PURPOSE, HELLO)
    await get(door, "")
    await get(door, f"/{made['id']}")
    await get(door, f"/{made['id']}/content")
    await door.ask(head("DELETE", f"/v1/files/{made['id']}"))
    for operation in ("save_file", "list_files", "get_file", "open_file", "delete_file"):
        assert door.metric("storage_operations_total", operation=operation, result="ok") == 1
    failures = iter((ZeroDivisionError("a bug"), OSError(28, "No space left on device")))

    def fails(descriptor: int) -> None:
        raise next(failures)

    monkeypatch.setattr("antiphon.stores.blobs.disk.os.fsync", fails)
    answer = await door.ask(posted(form(PURPOSE, HELLO)))
    assert answer.status == 500
    answer = await door.ask(posted(form(PURPOSE, HELLO)))
    assert (answer.status, answer.error["code"]) == (507, "insufficient_storage")
    assert door.metric("storage_operations_total", operation="save_file", result="error") == 1


# Contents


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.html", b"<script>alert(1)</script>", "application/octet-stream"),
        ("a.svg", b"<svg onload=alert(1)>", "application/octet-stream"),
        ("a.js", b"alert(1)", "application/octet-stream"),
        ("a.xml", b"<x/>", "application/octet-stream"),
        ("a.txt", b"<script>", "text/plain"),
        ("a.pdf", b"%PDF", "application/pdf"),
        ("a", b"?", "application/octet-stream"),
    ],
)
async def test_nothing_is_run_by_a_browser(door: OpenHttpDoor, name: str, content: bytes, kind: str) -> None:
    made = await upload(door, PURPOSE, (f'name="file"; filename="{name}"', content))
    answer = await get(door, f"/{made['id']}/content")
    assert answer.body == content
    assert answer.header("content-type") == kind
    assert (answer.header("content-disposition") or "").startswith("attachment; ")
    assert answer.header("x-content-type-options") == "nosniff"
    assert "sandbox" in (answer.header("content-security-policy") or "")


@pytest.mark.parametrize(
    ("given", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-4", (2, 5)),
        ("bytes=7-", (7, 10)),
        ("bytes=7-99", (7, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("Bytes=9-9", (9, 10)),
    ],
)
async def test_ranges(door: OpenHttpDoor, given: str, span: tuple[int, int]) -> None:
    made = await upload(door, PURPOSE, ('name="file"; filename="a.txt"', b"0123456789"))
    answer = await get(door, f"/{made['id']}/content", range=given)
    assert answer.status == 206
    assert answer.body == b"0123456789"[slice(*span)]
    assert answer.header("content-range") == f"bytes {span[0]}-{span[1] - 1}/10"


@pytest.mark.parametrize("given", ["bytes=1-2,4-5", "bytes=-", "lines=1-2", "bytes=5-4", "bytes=a-b", "bytes=1"])
async def test_what_is_no_range_is_the_whole(door: OpenHttpDoor, given: str) -> None:
    made = await upload(door, PURPOSE, HELLO)
    answer = await get(door, f"/{made['id']}/content", range=given)
    assert (answer.status, answer.body) == (200, b"hello\n")
    assert answer.header("accept-ranges") == "bytes"


@pytest.mark.parametrize("given", ["bytes=6-", "bytes=99-100", "bytes=-0"])
async def test_a_range_beyond_the_file(door: OpenHttpDoor, given: str) -> None:
    made = await upload(door, PURPOSE, HELLO)
    answer = await get(door, f"/{made['id']}/content", range=given)
    assert (answer.status, answer.header("content-range")) == (416, "bytes */6")
    assert answer.error["code"] == "invalid_range"


async def test_a_download_that_goes_on_only_if_the_file_is_the_same(door: OpenHttpDoor) -> None:
    path = f"/{(await upload(door, PURPOSE, HELLO))['id']}/content"
    tag = (await get(door, path)).header("etag") or ""
    assert (await get(door, path, range="bytes=1-", if_range=tag)).status == 206
    assert (await get(door, path, range="bytes=1-", if_range='"other"')).status == 200
    assert (await get(door, path, if_none_match='"other"')).status == 200
    for known in (tag, f'W/{tag}, "x"', "*"):
        async with door.client() as client:
            await client.send(head("GET", f"/v1/files{path}", if_none_match=known))
            assert (await client.read(bodiless=True)).status == 304
            # Nothing followed the head: the next answer is where it should be.
            await client.send(head("GET", f"/v1/files{path}"))
            assert (await client.read()).body == b"hello\n"


def _open_files() -> int:
    """The number of stored files that this process has open."""
    return len([each for each in Path("/proc/self/fd").iterdir() if "/files/" in str(each.resolve())])


async def test_head_opens_nothing_for_good(door: OpenHttpDoor, stores: Stores) -> None:
    path = f"/v1/files/{(await upload(door, PURPOSE, HELLO))['id']}/content"
    for _ in range(5):
        async with door.client() as client:
            await client.send(head("HEAD", path))
            answer = await client.read(bodiless=True)
            assert (answer.status, answer.header("content-length")) == (200, "6")
    await until(lambda: _open_files() == 0)


async def test_an_empty_file(door: OpenHttpDoor) -> None:
    made = await upload(door, PURPOSE, ('name="file"; filename="a.txt"', b""))
    assert made["bytes"] == 0
    answer = await get(door, f"/{made['id']}/content")
    assert (answer.status, answer.body, answer.header("content-length")) == (200, b"", "0")


async def test_a_slow_reader_holds_up_nobody_and_fills_no_memory(stores: Stores) -> None:
    async with open_http_door(files=stores.files, file_bytes=9 << 20) as door:
        made = await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * (8 << 20)))
        reads: list[int] = []
        opened = await stores.files.open(
            door.context.owners.resolve((("authorization", "Bearer alice"),)).owner, made["id"]
        )
        assert opened is not None
        kind = type(opened)
        await opened.aclose()
        read = kind.read

        async def counted(self: Any, start: int = 0, limit: int | None = None) -> bytes:
            reads.append(start)
            return await read(self, start, limit)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "read", counted)
            async with door.client() as client:
                await client.send(head("GET", f"/v1/files/{made['id']}/content"))
                answer = await client.head()
                assert answer.header("content-length") == str(8 << 20)
                for _ in range(20):  # others are served meanwhile
                    assert (await get(door, f"/{made['id']}")).status == 200
                assert len(reads) * (64 << 10) < 8 << 20
                data = await client.exactly(8 << 20)
                assert data == b"x" * (8 << 20)


async def test_a_reader_that_does_not_read_is_cut_off(stores: Stores) -> None:
    async with open_http_door(files=stores.files, file_bytes=9 << 20, send_seconds=0.1) as door:
        made = await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * (8 << 20)))
        async with door.client() as client:
            await client.send(head("GET", f"/v1/files/{made['id']}/content"))
            await client.head()
            await until(lambda: door.context.admission.active == 0)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.exactly(8 << 20)


async def test_a_reader_that_leaves_closes_the_file(stores: Stores) -> None:
    async with open_http_door(files=stores.files, file_bytes=9 << 20) as door:
        made = await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * (8 << 20)))

        async with door.client() as client:
            await client.send(head("GET", f"/v1/files/{made['id']}/content"))
            await client.head()
            assert _open_files() == 1
        await until(lambda: _open_files() == 0)


async def test_a_content_that_breaks_off_does_not_look_whole(
    door: OpenHttpDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await upload(door, PURPOSE, ('name="file"; filename="a"', b"x" * 600_000))
    (path,) = left_on_disk(tmp_path)
    with path.open("r+b") as file:
        file.truncate(300_000)
    answer = await get(door, f"/{made['id']}/content")
    assert answer.status == 200 and not answer.whole


# Lists, deleting, strangers


async def test_lists(door: OpenHttpDoor) -> None:
    made = [await upload(door, PURPOSE if n % 2 else one("purpose", b"assistants"), HELLO) for n in range(4)]
    answer = (await get(door, "?order=asc")).json
    assert not valid(OPENAI, "ListFilesResponse", answer)
    ids = [each["id"] for each in answer["data"]]
    assert sorted(ids) == sorted(each["id"] for each in made)
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == (ids[0], ids[-1], False)
    assert [each["id"] for each in (await get(door, "")).json["data"]] == ids[::-1]
    page = (await get(door, f"?order=asc&limit=2&after={ids[0]}")).json
    assert ([each["id"] for each in page["data"]], page["has_more"]) == (ids[1:3], True)
    chosen = (await get(door, "?purpose=assistants")).json["data"]
    assert sorted(each["id"] for each in chosen) == sorted(each["id"] for each in made[::2])
    assert (await get(door, "?purpose=vision")).json["data"] == []


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "order=up", f"after={NONE}", "after=../x"])
async def test_wrong_lists(door: OpenHttpDoor, query: str) -> None:
    answer = await get(door, f"?{query}")
    assert (answer.status, answer.error["param"]) == (400, query.partition("=")[0])


async def test_deleting(door: OpenHttpDoor, tmp_path: Path) -> None:
    made = await upload(door, PURPOSE, HELLO)
    gone = await door.ask(head("DELETE", f"/v1/files/{made['id']}"))
    assert gone.json == {"id": made["id"], "object": "file", "deleted": True}
    assert not valid(OPENAI, "DeleteFileResponse", gone.json)
    assert (await door.ask(head("DELETE", f"/v1/files/{made['id']}"))).status == 404
    assert (await get(door, f"/{made['id']}")).status == 404
    assert left_on_disk(tmp_path) == []


@pytest.mark.parametrize(("method", "rest"), [("GET", ""), ("DELETE", ""), ("GET", "/content"), ("HEAD", "/content")])
async def test_a_strangers_file_and_none_are_the_same(door: OpenHttpDoor, method: str, rest: str) -> None:
    made = await upload(door, PURPOSE, HELLO)
    answers = []
    for file_id in (made["id"], NONE, "no.name", "x" * 200):
        async with door.client() as client:
            await client.send(head(method, f"/v1/files/{file_id}{rest}", BOB, x_request_id="same"))
            answer = await client.read(bodiless=method == "HEAD")
        body = answer.body.replace(file_id[:128].encode(), b"ID")
        answers.append((answer.status, body, [name for name, _ in answer.headers]))
    assert answers[0][0] == 404
    assert all(each == answers[0] for each in answers[1:3])
    assert answers[3][:2] == answers[0][:2]
    if method != "HEAD":
        assert json.loads(answers[0][1])["error"]["message"] == "No such File object: ID"
    assert (await get(door, f"/{made['id']}/content")).body == b"hello\n"


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/files"), ("POST", f"/v1/files/{NONE}")])
async def test_other_methods(door: OpenHttpDoor, method: str, path: str) -> None:
    answer = await door.ask(head(method, path, content_length="0"))
    assert answer.status == 405 and answer.header("allow")


# Official client


async def test_the_official_client(door: OpenHttpDoor, tmp_path: Path) -> None:
    source = tmp_path / "naïve notes.md"
    source.write_text("# Notes\n" * 1000)
    async with openai.AsyncOpenAI(base_url=door.base_url, api_key=ALICE, max_retries=0) as client:
        made = await client.files.create(
            file=source, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 7200}
        )
        assert (made.filename, made.bytes) == ("naïve notes.md", 8000)
        assert made.expires_at == made.created_at + 7200
        other = await client.files.create(file=("b.txt", b"bytes"), purpose="assistants")
        assert [file.id async for file in client.files.list(order="asc", limit=1)] == [made.id, other.id]
        assert await client.files.retrieve(made.id) == made
        content = await client.files.content(made.id)
        assert content.text == "# Notes\n" * 1000
        assert (await client.files.wait_for_processing(made.id)).status == "processed"
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)


async def test_memory_stays_flat(tmp_path: Path) -> None:
    """Many times the size of any buffer goes through, one upload after another and several at once."""
    async with (
        aclosing(await open_state(tmp_path, chain_items=10)) as stores,
        open_http_door(files=stores.files, file_bytes=64 << 20) as door,
    ):
        piece = b"x" * (1 << 20)

        async def large(megabytes: int) -> int:
            async with RawClient(door.address) as client:
                start = form(PURPOSE, ('name="file"; filename="a"', b""))[:-CLOSING]
                end = form()
                size = len(start) + megabytes * len(piece) + 2 + len(end)
                await client.send(posted(b"", content_length=str(size)) + start)
                for _ in range(megabytes):
                    await client.send(piece)
                await client.send(b"\r\n" + end)
                answer = await client.read()
                assert answer.status == 200, answer.body
                return int(answer.json["bytes"])

        # A process that has just started takes what four uploads at once hold, however little goes through them.
        assert await asyncio.gather(*(large(2) for _ in range(4))) == [2 << 20] * 4
        before = forget_peak()
        assert await asyncio.gather(*(large(24) for _ in range(4))) == [24 << 20] * 4
        # Four uploads of 24 MB each, and the test's own piece.
        assert peak() - before < 16 << 10
