"""Files by id: what the exchange asks for, what the runner brings, and what becomes of them in a chat request."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.actions import (
    CallUpstream,
    Chain,
    Context,
    LoadContext,
    RequestHead,
    SendBody,
    SendHead,
    StoredItem,
)
from antiphon.engine.ports.files import FileFields
from antiphon.engine.running.loading import Loader, StoredFiles
from antiphon.engine.running.runner import Runner
from antiphon.errors import ApiError, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.types.file_kinds import FetchedFile
from tests.support.exchanges import make_exchange
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_store import MemoryResponseStore
from tests.support.ports import make_ports

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8


def file(file_id: str, **more: Any) -> dict[str, Any]:
    return {"type": "input_file", "file_id": file_id, **more}


def image(file_id: str, **more: Any) -> dict[str, Any]:
    return {"type": "input_image", "file_id": file_id, **more}


def message(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": list(parts)}


def begin(**fields: Any) -> Any:
    exchange = make_exchange()
    exchange.receive_request(
        RequestHead("POST", "/v1/responses", (), "ann"), json.dumps({"model": "m", **fields}).encode()
    )
    return exchange


def asked(*parts: dict[str, Any], files: dict[str, FetchedFile | ApiError]) -> Any:
    """The first message's content of the chat request that these parts lead to."""
    exchange = begin(input=[message(*parts)])
    assert exchange.actions() == [LoadContext("ann", None, file_ids=tuple(files))]
    exchange.receive_context(Context(files=files))
    call = exchange.actions()[0]
    assert isinstance(call, CallUpstream)
    return json.loads(call.request.body)["messages"][0]["content"]


def refused(*parts: dict[str, Any], files: dict[str, FetchedFile | ApiError]) -> Any:
    """The error object of a request with these parts."""
    exchange = begin(input=[message(*parts)])
    exchange.actions()
    exchange.receive_context(Context(files=files))
    head, body = exchange.actions()[:2]
    assert isinstance(head, SendHead) and head.status == 400 and isinstance(body, SendBody)
    return json.loads(body.data)["error"]


def test_files_by_id_are_asked_for_as_often_as_they_are_named_with_those_by_url() -> None:
    exchange = begin(input=[message(file("file-a"), image("file-b"), file("file-a")), message(file("file-c"))])
    assert exchange.actions() == [LoadContext("ann", None, file_ids=("file-a", "file-b", "file-a", "file-c"))]
    exchange = begin(input=[message(file("file-a"), {"type": "input_file", "file_url": "https://a/x"})])
    assert exchange.actions() == [LoadContext("ann", None, file_urls=("https://a/x",), file_ids=("file-a",))]


def test_what_the_model_gets() -> None:
    data: dict[str, FetchedFile | ApiError] = {
        "file-t": FetchedFile("a.md", "text/markdown", b"# Title"),
        "file-p": FetchedFile("a.pdf", "application/pdf", b"%PDF"),
        "file-i": FetchedFile("a.dat", "application/octet-stream", PNG),
    }
    parts = asked(file("file-t"), file("file-p", filename="b.pdf"), image("file-i", detail="low"), files=data)
    url = base64.b64encode(PNG).decode()
    assert parts == [
        {"type": "text", "text": "File a.md:\n# Title"},
        {"type": "file", "file": {"filename": "b.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{url}", "detail": "low"}},
    ]


def test_a_picture_that_is_none() -> None:
    error = refused(image("file-a"), files={"file-a": FetchedFile("a.svg", "image/svg+xml", b"<svg/>")})
    assert (error["param"], error["code"]) == ("input[0].content[0].file_id", "invalid_value")


def test_a_picture_in_a_tools_output() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": [image("file-i")]}
    exchange = begin(input=[call, output])
    assert exchange.actions() == [LoadContext("ann", None, file_ids=("file-i",))]
    exchange.receive_context(Context(files={"file-i": FetchedFile("a.png", "image/png", PNG)}))
    assert b"data:image/png;base64," in exchange.actions()[0].request.body


async def test_a_file_that_is_not_there_is_named() -> None:
    found = await StoredFiles(MemoryFileStore(clock=time.time), 100).load("ann", ("file-none",))
    error = refused(file("file-none"), files=found)
    assert (error["param"], error["code"]) == ("input[0].content[0].file_id", "file_not_found")


def test_a_conversation_goes_on_without_a_file_that_was_deleted() -> None:
    exchange = begin(input="and?", previous_response_id="resp_1")
    exchange.actions()
    body = json.dumps({"id": "msg_1", **message(file("file-old"))}).encode()
    exchange.receive_context(Context(Chain((StoredItem("msg_1", "message", body),))))
    assert exchange.actions() == [LoadContext("ann", None, file_ids=("file-old",))]
    gone = ApiError("gone")
    exchange.receive_context(Context(files={"file-old": gone}))
    call = exchange.actions()[0]
    assert isinstance(call, CallUpstream) and b"no longer available" in call.request.body


async def keep(store: MemoryFileStore, name: str, data: bytes, owner: str = "ann") -> None:
    async with store.uploading() as upload:
        await upload.write(data)
        await upload.keep(owner, FileFields(f"file-{name}", name, "user_data", "text/plain", time.time()))


async def test_files_are_read_within_a_limit_for_all_of_them() -> None:
    store = MemoryFileStore(clock=time.time)
    for name in "abc":
        await keep(store, name, name.encode() * 40)
    await keep(store, "large", b"x" * 101)
    await keep(store, "bobs", b"x", owner="bob")
    ids = ("file-a", "file-large", "file-b", "file-c", "file-bobs", "../etc", "")
    found = await StoredFiles(store, 100).load("ann", ids)
    assert tuple(found) == ids
    assert found["file-a"] == FetchedFile("a", "text/plain", b"a" * 40)
    assert found["file-b"] == FetchedFile("b", "text/plain", b"b" * 40)
    codes = {name: each.code for name, each in found.items() if isinstance(each, ApiError)}
    assert codes == {
        "file-large": "file_too_large",
        "file-c": "file_too_large",
        "file-bobs": "file_not_found",
        "../etc": "file_not_found",
        "": "file_not_found",
    }


def make_runner(files: MemoryFileStore | None) -> Runner:
    return Runner(
        make_ports(
            MemoryResponseStore(),
            None,
            timeouts=TimeoutSettings(),
            metrics=Metrics(),
            stored_files=StoredFiles(files, 100) if files is not None else None,
        )
    )


async def test_the_runner_reads_them_for_the_owner() -> None:
    store = MemoryFileStore(clock=time.time)
    await keep(store, "a", b"x")
    context = await Loader(make_runner(store).ports).load(LoadContext("ann", None, file_ids=("file-a",)))
    assert context == Context(files={"file-a": FetchedFile("a", "text/plain", b"x")})


async def test_where_there_are_no_files_an_id_is_refused() -> None:
    context = await Loader(make_runner(None).ports).load(LoadContext("ann", None, file_ids=("file-a",)))
    assert isinstance(context, Context)
    error = refused(file("file-a"), files=context.files)
    assert error["code"] == "unsupported_parameter" and "file_data" in error["message"]


async def test_a_store_that_fails_is_a_500() -> None:
    class Failing(MemoryFileStore):
        async def open(self, owner: str, file_id: str) -> Any:
            raise StoreError("disk")

    context = await Loader(make_runner(Failing(clock=time.time)).ports).load(
        LoadContext("ann", None, file_ids=("file-a",))
    )
    assert isinstance(context, ApiError) and (context.status, context.code) == (500, "storage_failed")


async def test_a_file_counts_as_often_as_it_is_named() -> None:
    store = MemoryFileStore(clock=time.time)
    async with store.uploading() as upload:
        await upload.write(b"x" * 100)
        await upload.keep("ann", FileFields("file-a", "a.txt", "user_data", "text/plain", time.time()))
    files = StoredFiles(store, 250)
    assert isinstance((await files.load("ann", ("file-a",) * 2))["file-a"], FetchedFile)
    refused = (await files.load("ann", ("file-a",) * 3))["file-a"]
    assert isinstance(refused, ApiError) and refused.code == "file_too_large" and "files.input_bytes" in refused.message
