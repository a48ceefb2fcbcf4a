"""Files through Envoy and through the HTTP door: uploads and downloads by the official client, flat memory in every
process on the way, and files by id in requests through every kind of gateway."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from tests.e2e.conftest import Setup, Setups
from tests.support.chat_server import ChatServer
from tests.support.gateway import post, start_gateway
from tests.support.judge import check_stream, parse_sse
from tests.support.memory import forget_peak, peak
from tests.support.seaweed import KEY_ID, SECRET, SeaweedServer
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

ALICE = {"authorization": "Bearer alice"}
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 100


@pytest_asyncio.fixture(params=("relay", "http"), loop_scope="session")
async def way(request: pytest.FixtureRequest, setups: Setups) -> Setup:
    """The two ways to the API: Envoy's own route, and the HTTP door."""
    return await setups.get(request.param)


@pytest_asyncio.fixture(loop_scope="session")
async def client(setup: Setup) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=setup.gateway.base_url, api_key="alice", max_retries=0) as made:
        yield made


def family(pid: int) -> list[int]:
    """A process with all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in family(int(child)))]


async def test_the_official_client(way: Setup) -> None:
    async with openai.AsyncOpenAI(base_url=way.gateway.base_url, api_key="alice", max_retries=0) as client:
        made = await client.files.create(
            file=("naïve 漢.md", b"# Notes\n"),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert (made.filename, made.bytes, made.expires_at) == ("naïve 漢.md", 8, made.created_at + 3600)
        assert made.id in [file.id async for file in client.files.list(purpose="user_data")]
        assert (await client.files.content(made.id)).content == b"# Notes\n"
        assert (await client.files.wait_for_processing(made.id)).status == "processed"
        stranger = client.with_options(api_key="bob")
        with pytest.raises(openai.NotFoundError):
            await stranger.files.content(made.id)
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(made.id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            await client.files.create(file=b"x", purpose="fun")  # type: ignore[arg-type]


async def test_a_large_file_goes_both_ways_in_flat_memory(way: Setup) -> None:
    piece, count = bytes(range(256)) * 4096, 96

    async def body() -> AsyncIterator[bytes]:
        yield b'--b\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nassistants\r\n'
        yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="large.bin"\r\n\r\n'
        for _ in range(count):
            yield piece
        yield b"\r\n--b--\r\n"

    url = f"{way.gateway.base_url}/files"
    kind = {**ALICE, "content-type": "multipart/form-data; boundary=b"}
    async with aiohttp.ClientSession() as session:
        async with session.get(url, headers=ALICE) as answer:  # everything has been used once
            assert answer.status == 200
        before = {pid: forget_peak(pid) for pid in family(way.gateway.process.pid)}
        async with session.post(url, headers=kind, data=body()) as answer:
            made = await answer.json()
            assert (answer.status, made["bytes"]) == (200, count << 20), made
        async with session.get(f"{url}/{made['id']}/content", headers=ALICE) as answer:
            assert answer.headers["content-length"] == str(count << 20)
            await asyncio.sleep(0.3)  # a reader that takes its time: the bytes wait on disk, not in memory
            read = 0
            async for part in answer.content.iter_chunked(1 << 20):
                read += len(part)
            assert read == count << 20
        grown = {pid: peak(pid) - kilobytes for pid, kilobytes in before.items()}
        assert all(kilobytes < 24 << 10 for kilobytes in grown.values()), grown
        span = {"range": f"bytes={(count << 20) - 3}-"}
        async with session.get(f"{url}/{made['id']}/content", headers={**ALICE, **span}) as answer:
            assert (answer.status, await answer.read()) == (206, b"\xfd\xfe\xff")
        async with session.head(f"{url}/{made['id']}/content", headers=ALICE) as answer:
            assert (answer.status, answer.headers["content-length"]) == (200, str(count << 20))
            assert answer.headers["content-disposition"] == 'attachment; filename="large.bin"'
        async with session.delete(f"{url}/{made['id']}", headers=ALICE) as answer:
            assert answer.status == 200


async def test_what_is_too_large_is_refused_before_it_is_sent(way: Setup) -> None:
    host, _, port = way.gateway.origin.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer alice\r\n"
        b"content-type: multipart/form-data; boundary=b\r\ncontent-length: 999999999999\r\n\r\n--b\r\n"
    )
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 413 ")


async def test_an_upload_that_breaks_off_leaves_nothing(way: Setup) -> None:
    new = way.gateway.data / "files" / "new"
    host, _, port = way.gateway.origin.removeprefix("http://").rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer alice\r\n"
        b"content-type: multipart/form-data; boundary=b\r\ncontent-length: 9000000\r\n\r\n"
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 1_000_000
    )
    await until(lambda: [path for path in new.glob("*") if path.stat().st_size])
    writer.transport.abort()
    await until(lambda: not list(new.glob("*")))


# Files by id in requests


def ask(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    content = [{"type": "input_text", "text": "Read"}, *parts]
    return {"model": "demo-model", "input": [{"role": "user", "content": content}], **fields}


@pytest.mark.parametrize("stream", [True, False])
async def test_files_by_id_reach_the_model(setup: Setup, client: openai.AsyncOpenAI, stream: bool) -> None:
    text = await client.files.create(file=("moon.md", b"The moon is far."), purpose="user_data")
    pdf = await client.files.create(file=("x.pdf", b"%PDF"), purpose="user_data")
    picture = await client.files.create(file=("x.png", PNG), purpose="vision")
    request = ask(
        {"type": "input_file", "file_id": text.id},
        {"type": "input_file", "file_id": pdf.id},
        {"type": "input_image", "file_id": picture.id},
        stream=stream,
    )
    answered = await post(setup.gateway.base_url + "/responses", request, ALICE)
    assert answered.status == 200, answered.body
    if stream:
        check_stream(parse_sse(answered.body))
    sent = json.dumps(setup.server.requests[-1].json["messages"])
    assert "The moon is far." in sent and "moon.md" in sent
    for data in (b"%PDF", PNG):
        assert base64.b64encode(data).decode() in sent
    assert text.id not in sent


async def test_a_conversation_goes_on_when_its_file_is_gone(setup: Setup, client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("moon.md", b"The moon is far."), purpose="user_data")
    first = await client.responses.create(**ask({"type": "input_file", "file_id": file.id}))
    items = await client.responses.input_items.list(first.id)
    assert file.id in items.data[0].to_json()
    again = {"model": "demo-model", "input": "And?", "previous_response_id": first.id}
    await client.responses.create(**again)
    assert "The moon is far." in json.dumps(setup.server.requests[-1].json["messages"])
    await client.files.delete(file.id)
    await client.responses.create(**again)
    sent = json.dumps(setup.server.requests[-1].json["messages"])
    assert "The moon is far." not in sent and "no longer available" in sent


async def test_files_of_a_conversation(setup: Setup, client: openai.AsyncOpenAI) -> None:
    file = await client.files.create(file=("moon.md", b"The moon is far."), purpose="user_data")
    items = ask({"type": "input_file", "file_id": file.id})["input"]
    conversation = await client.conversations.create(items=items)
    await client.responses.create(model="demo-model", input="And?", conversation=conversation.id)
    assert "The moon is far." in json.dumps(setup.server.requests[-1].json["messages"])


async def test_files_in_the_background(tmp_path: Path) -> None:
    async with ChatServer() as chat:
        environ = {"ANTIPHON_UPSTREAM__AUTH": "none"}
        gateway = await start_gateway(chat.base_url, tmp_path, environ=environ)
        async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="alice", max_retries=0) as client:
            file = await client.files.create(file=("moon.md", b"The moon is far."), purpose="user_data")
            response = await client.responses.create(**ask({"type": "input_file", "file_id": file.id}, background=True))
            async with asyncio.timeout(30):
                while response.status in ("queued", "in_progress"):
                    response = await client.responses.retrieve(response.id)
        assert response.status == "completed"
        assert "The moon is far." in json.dumps(chat.requests[-1].json["messages"])
        assert await gateway.stop() == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_a_strangers_file_and_none_are_a_400_that_names_the_part(
    setup: Setup, client: openai.AsyncOpenAI, stream: bool
) -> None:
    file = await client.files.create(file=("moon.md", b"The moon is far."), purpose="user_data")
    bodies = []
    for file_id in (file.id, "file-" + "0" * 48):
        request = ask({"type": "input_file", "file_id": file_id}, stream=stream)
        headers = {"authorization": "Bearer bob", "x-request-id": "same"}
        answered = await post(setup.gateway.base_url + "/responses", request, headers)
        assert answered.status == 400
        error = json.loads(answered.body)["error"]
        assert (error["param"], error["code"]) == ("input[0].content[1].file_id", "file_not_found")
        bodies.append(answered.body.replace(file_id.encode(), b"ID"))
    assert bodies[0] == bodies[1]
    assert not setup.server.requests


# Processes


@pytest.fixture(params=["disk", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, str], Callable[[], list[str]]]:
    """Where contents lie: the settings that say so, and what lies there."""
    if request.param == "disk":
        return {}, lambda: [str(path) for path in (tmp_path / "files").rglob("*") if path.is_file()]
    seaweed: SeaweedServer = request.getfixturevalue("seaweed")
    blobs = seaweed.settings()
    given = {"url": blobs.url, "endpoint": blobs.endpoint, "key_id": KEY_ID, "secret": SECRET}
    environ = {f"ANTIPHON_BLOBS__{name.upper()}": str(value) for name, value in given.items()}
    return environ, lambda: seaweed.keys(blobs)


async def test_what_a_killed_process_left_is_gone_after_the_next_start(
    tmp_path: Path, storage: tuple[dict[str, str], Callable[[], list[str]]]
) -> None:
    """Once its lease is over, not before: till then it may live."""
    environ, left = storage
    # One process clears up for all in each of these seconds, also after a restart.
    often = {"ANTIPHON_FILES__SWEEP": "1", "ANTIPHON_FILES__LEASE": "5", **environ}
    gateway = await start_gateway("http://127.0.0.1:9/v1", tmp_path, command="serve", environ=often)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="alice", max_retries=0) as client:
        kept = await client.files.create(file=("a.txt", b"kept"), purpose="user_data")
        assert len(left()) == 1
        host, _, port = gateway.origin.removeprefix("http://").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer alice\r\n"
            b"content-type: multipart/form-data; boundary=b\r\ncontent-length: 90000000\r\n\r\n"
            b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + b"x" * 20_000_000
        )
        await until(lambda: len(left()) > 1)
        assert await gateway.stop(signal.SIGKILL) == -9
        writer.close()
    assert len(left()) > 1
    gateway = await start_gateway("http://127.0.0.1:9/v1", tmp_path, command="serve", environ=often)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="alice", max_retries=0) as client:
        await until(lambda: len(left()) == 1)
        assert (await client.files.content(kept.id)).content == b"kept"
    assert await gateway.stop() == 0


async def test_files_can_be_switched_off(tmp_path: Path) -> None:
    off = {"ANTIPHON_FILES__ENABLED": "false"}
    gateway = await start_gateway("http://127.0.0.1:9/v1", tmp_path, command="serve", environ=off)
    async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="alice", max_retries=0) as client:
        with pytest.raises(openai.NotFoundError):
            await client.files.create(file=("a.txt", b"x"), purpose="user_data")
        with pytest.raises(openai.BadRequestError, match="This server stores no files"):
            await client.responses.create(**ask({"type": "input_file", "file_id": "file-1"}))
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{gateway.base_url}/antiphon/capabilities", headers=ALICE) as answer,
    ):
        shown = await answer.json()
    assert shown["content"]["content.input_file.file_id"]["support"] == "rejected"
    assert await gateway.stop() == 0


async def test_two_sidecars_share_the_files(tmp_path: Path) -> None:
    """Uploads and reads go to either; each finds what the other took."""
    gateway = await start_gateway("http://127.0.0.1:9/v1", tmp_path, "--workers", "2")
    try:

        async def one(number: int) -> None:
            # A connection of its own each: Envoy deals connections out to its workers and to the sidecars.
            async with openai.AsyncOpenAI(base_url=gateway.base_url, api_key="alice", max_retries=0) as client:
                data = b"%d" % number * 100_000
                made = await client.files.create(file=(f"{number}.txt", data), purpose="user_data")
                for _ in range(4):
                    assert (await client.files.content(made.id)).content == data

        await asyncio.gather(*(one(number) for number in range(8)))
    finally:
        assert await gateway.stop() == 0
