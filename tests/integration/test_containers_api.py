"""The endpoints of containers over the tests' sandbox: shapes, owners, refusals, pages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.api.containers import ContainerApi
from antiphon.api.http import ApiRequest
from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.ports.files import FileFields
from antiphon.errors import ApiError
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from tests.support.fake_time import in_fake_time
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_sandbox import MemorySandbox

ALICE, BOB = "b:alice", "b:bob"
FORM = ("content-type", "multipart/form-data; boundary=b")


def form(*parts: tuple[str, str | None, bytes], end: bytes = b"--b--\r\n") -> bytes:
    made = b""
    for name, filename, data in parts:
        file = f'; filename="{filename}"' if filename is not None else ""
        made += f'--b\r\ncontent-disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b"\r\n"
    return made + end


class Api:
    def __init__(self, folder: Path) -> None:
        self.now = 1_000.0
        self.sandbox = MemorySandbox(CodeInterpreterSettings.model_construct(disk_bytes=1_000))
        self.uploaded = MemoryFileStore(clock=lambda: self.now)
        rows = RecordedRows(Records(folder), lambda: self.now)
        self.rooms = ContainerRooms(self.sandbox, rows, self.uploaded, per_owner=5, clock=lambda: self.now)
        self.endpoints = ContainerApi(self.rooms, CodeInterpreterSettings(memory=2 << 30, idle=1_200)).endpoints()

    async def send(
        self, method: str, path: str, body: Any = None, *, owner: str = ALICE, headers: tuple[Any, ...] = ()
    ) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()

        async def stream() -> AsyncIterator[bytes]:
            for at in range(0, len(raw), 7):
                yield raw[at : at + 7]

        for route in self.endpoints:
            found = route.match(path)
            if found is None:
                continue
            request = ApiRequest(
                method,
                path,
                tuple((name, value) for name, _, value in (one.partition("=") for one in query.split("&") if one)),
                headers,
                b"" if route.streamed else raw,
                owner,
                body_stream=stream() if route.streamed else None,
            )
            try:
                answer = await route.methods[method](request, *found)
            except ApiError as error:
                return error.status, json.loads(error.body())["error"]
            if answer.stream is not None:
                return answer.status, (dict(answer.headers), b"".join([part async for part in answer.stream]))
            return answer.status, json.loads(answer.body)
        raise AssertionError(path)

    async def made(self, **more: Any) -> str:
        status, body = await self.send("POST", "/v1/containers", {"name": "c", **more})
        assert status == 200, body
        return str(body["id"])

    async def upload(self, name: str, data: bytes, owner: str = ALICE) -> str:
        async with self.uploaded.uploading() as upload:
            await upload.write(data)
            kept = await upload.keep(
                owner, FileFields(f"file-{name[0]}{len(self.uploaded.all)}", name, "user_data", "text/plain", self.now)
            )
        return kept.id


@pytest.fixture
def api(tmp_path: Path) -> Api:
    return Api(tmp_path / "records")


async def test_a_container_from_its_making_to_its_end(api: Api) -> None:
    body = {"name": "mine", "memory_limit": "1g", "expires_after": {"anchor": "last_active_at", "minutes": 5}}
    assert not any(route.keyed for route in api.endpoints), "the router names a key that has no effect"
    status, made = await api.send("POST", "/v1/containers", body)
    assert status == 200 and made == {
        "id": made["id"],
        "object": "container",
        "created_at": 1_000,
        "status": "running",
        "expires_after": {"anchor": "last_active_at", "minutes": 5},
        "last_active_at": 1_000,
        "memory_limit": "1g",
        "name": "mine",
        "network_policy": {"type": "disabled"},
    }
    path = f"/v1/containers/{made['id']}"
    assert await api.send("GET", path) == (200, made)
    assert await api.send("DELETE", path) == (
        200,
        {"id": made["id"], "object": "container.deleted", "deleted": True},
    )
    assert (await api.send("GET", path))[0] == (await api.send("DELETE", path))[0] == 404


async def test_files_of_a_form_and_of_an_id(api: Api) -> None:
    path = f"/v1/containers/{await api.made()}/files"
    status, file = await api.send("POST", path, form(("x", None, b"1"), ("file", "a.txt", b"abc")), headers=(FORM,))
    assert status == 200 and file == {
        "id": file["id"],
        "object": "container.file",
        "created_at": 1_000,
        "bytes": 3,
        "container_id": file["container_id"],
        "path": "/mnt/data/a.txt",
        "source": "user",
    }
    uploaded = await api.upload("b.txt", b"bb")
    for body, headers in (({"file_id": uploaded}, ()), (form(("file_id", None, uploaded.encode())), (FORM,))):
        status, copied = await api.send("POST", path, body, headers=headers)
        assert (status, copied["path"], copied["bytes"]) == (200, "/mnt/data/b.txt", 2)
    status, listed = await api.send("GET", f"{path}?order=asc")
    assert [one["path"] for one in listed["data"]] == ["/mnt/data/a.txt", "/mnt/data/b.txt"]
    assert await api.send("GET", f"{path}/{file['id']}") == (200, file)
    status, (headers, data) = await api.send("GET", f"{path}/{file['id']}/content")
    assert (status, data, headers["x-content-type-options"]) == (200, b"abc", "nosniff")
    status, (headers, data) = await api.send("GET", f"{path}/{file['id']}/content", headers=(("range", "bytes=1-"),))
    assert (status, data, headers["content-range"]) == (206, b"bc", "bytes 1-2/3")
    assert (await api.send("DELETE", f"{path}/{file['id']}"))[1]["deleted"] is True
    assert (await api.send("GET", f"{path}/{file['id']}"))[0] == 404
    assert [file.path for file in await api.sandbox.list(file["container_id"])] == ["b.txt"]


async def test_what_code_wrote_is_the_assistants(api: Api) -> None:
    container = await api.made()
    await api.rooms.run(ALICE, container, "open('out.html', 'w').write('<b>')")
    _, listed = await api.send("GET", f"/v1/containers/{container}/files")
    (file,) = listed["data"]
    assert (file["source"], file["path"]) == ("assistant", "/mnt/data/out.html")
    _, (headers, _) = await api.send("GET", f"/v1/containers/{container}/files/{file['id']}/content")
    assert headers["content-type"] == "application/octet-stream" and "attachment" in headers["content-disposition"]
    # Written again it is another file, and the old id means nothing.
    await api.rooms.run(ALICE, container, "open('out.html', 'w').write('<i>')")
    assert (await api.send("GET", f"/v1/containers/{container}/files/{file['id']}"))[0] == 404


async def test_nothing_is_anybody_elses(api: Api) -> None:
    container = await api.made()
    _, file = await api.send(
        "POST", f"/v1/containers/{container}/files", form(("file", "a.txt", b"abc")), headers=(FORM,)
    )
    one, files = f"/v1/containers/{container}", f"/v1/containers/{container}/files"
    for method, path, body, headers in (
        ("GET", one, None, ()),
        ("DELETE", one, None, ()),
        ("GET", files, None, ()),
        ("POST", files, form(("file", "b.txt", b"b")), (FORM,)),
        ("POST", files, {"file_id": await api.upload("bobs", b"b", BOB)}, ()),
        ("GET", f"{files}/{file['id']}", None, ()),
        ("DELETE", f"{files}/{file['id']}", None, ()),
        ("GET", f"{files}/{file['id']}/content", None, ()),
    ):
        assert (await api.send(method, path, body, owner=BOB, headers=headers))[0] == 404, (method, path)
    assert (await api.send("GET", "/v1/containers", owner=BOB))[1]["data"] == []
    assert [one.path for one in await api.sandbox.list(container)] == ["a.txt"]
    assert await api.rooms.run(BOB, container, "1") is None and not api.sandbox.ran
    # Nor can somebody else's file be put into one's own.
    theirs = await api.upload("theirs", b"x", BOB)
    assert (await api.send("POST", files, {"file_id": theirs}))[0] == 404
    assert (await api.send("POST", "/v1/containers", {"name": "c", "file_ids": [theirs]}))[0] == 404


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 300}, "name"),
        ({"name": 5}, "name"),
        ({"name": "c", "memory_limit": "2g"}, "memory_limit"),
        ({"name": "c", "memory_limit": "4g"}, "memory_limit"),
        ({"name": "c", "expires_after": {"minutes": 5}}, "expires_after.anchor"),
        ({"name": "c", "expires_after": {"anchor": "last_active_at"}}, "expires_after.minutes"),
        ({"name": "c", "expires_after": {"anchor": "last_active_at", "minutes": 21}}, "expires_after.minutes"),
        ({"name": "c", "network_policy": {"type": "allowlist"}}, "network_policy"),
        ({"name": "c", "skills": [{"type": "skill_reference"}]}, "skills"),
        ({"name": "c", "file_ids": ["f"] * 1 + [f"f{n}" for n in range(100)]}, "file_ids"),
    ],
)
async def test_what_is_no_container(api: Api, body: Any, param: str) -> None:
    status, error = await api.send("POST", "/v1/containers", body)
    assert (status, error["param"]) == (400, param)
    assert (await api.send("GET", "/v1/containers"))[1]["data"] == []


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (form(("other", None, b"1")), (FORM,), "missing_required_parameter"),
        (form(("file", None, b"1")), (FORM,), "invalid_value"),
        (form(("file", "..", b"1")), (FORM,), "invalid_value"),
        (form(("file", "a.txt", b"1"), end=b""), (FORM,), None),
        (form(("file", "a.txt", b"x" * 2_000)), (FORM,), "container_error"),
        (b"{", (), "invalid_json"),
        (b"[" * 3_000, (), "invalid_type"),
        (b"{}", (), "missing_required_parameter"),
        (b"x" * 10_000, (), "request_too_large"),
    ],
)
async def test_what_is_no_file_leaves_none(api: Api, body: bytes, headers: Any, code: str | None) -> None:
    container = await api.made()
    status, error = await api.send("POST", f"/v1/containers/{container}/files", body, headers=headers)
    assert status == (413 if code == "request_too_large" else 400)
    assert code is None or error["code"] == code, error
    assert await api.sandbox.list(container) == []
    assert (await api.send("GET", f"/v1/containers/{container}/files"))[1]["data"] == []


async def test_pages(api: Api) -> None:
    ids = []
    for number in range(5):
        api.now += 1
        ids.append(await api.made(name=f"c{number % 2}"))
    status, page = await api.send("GET", "/v1/containers?limit=2")
    assert [one["id"] for one in page["data"]] == ids[:2:-1] and page["has_more"]
    assert (page["first_id"], page["last_id"]) == (ids[4], ids[3])
    status, page = await api.send("GET", f"/v1/containers?limit=3&after={ids[3]}")
    assert [one["id"] for one in page["data"]] == ids[2::-1] and not page["has_more"]
    status, page = await api.send("GET", "/v1/containers?order=asc&name=c1")
    assert [one["id"] for one in page["data"]] == [ids[1], ids[3]]
    assert (await api.send("GET", "/v1/containers?after=cntr_x"))[0] == 400
    assert (await api.send("GET", "/v1/containers?limit=0"))[0] == 400
    status, error = await api.send("POST", "/v1/containers", {"name": "one too many"})
    assert (status, error["code"]) == (400, "container_error")


async def test_use_keeps_a_container_and_time_ends_it(api: Api) -> None:
    used, unused = await api.made(), await api.made()
    api.now += 1_000
    assert await api.rooms.run(ALICE, used, "open('a', 'w').write('a')") is not None
    api.now += 1_000
    assert (await api.send("GET", f"/v1/containers/{used}"))[0] == 200
    assert (await api.send("GET", f"/v1/containers/{unused}"))[0] == 404
    assert await api.rooms.run(ALICE, unused, "1") is None
    assert await api.rooms.sweep() == (1,)
    assert [one.id for one in await api.rooms.list(ALICE)] == [used]
    api.now += 2_000
    assert await api.rooms.sweep() == (1,) and api.sandbox.files == {}


async def test_one_thing_at_a_time_in_a_container(api: Api) -> None:
    container = await api.made()
    api.sandbox.hangs = True
    first = asyncio.create_task(api.rooms.run(ALICE, container, "1"))
    await api.sandbox.begun.wait()
    second = asyncio.create_task(api.rooms.run(ALICE, container, "2"))
    while api.rooms.uses.users(container) < 2:
        await asyncio.sleep(0)
    deleting = asyncio.create_task(api.send("DELETE", f"/v1/containers/{container}"))
    other = await api.made()
    while api.rooms.uses.users(container) < 3:
        await asyncio.sleep(0)
    assert len(api.sandbox.ran) == 1 and not deleting.done()
    api.sandbox.hangs = False
    first.cancel()
    ran = await second
    assert ran is not None and ran.run.output == "2\n"
    assert (await deleting)[0] == 200 and [one.id for one in await api.rooms.list(ALICE)] == [other]
    assert not api.rooms.uses.locks


def test_deleting_a_container_whose_code_does_not_end_says_so(tmp_path: Path) -> None:
    async def work() -> None:
        api = Api(tmp_path / "containers")
        container = await api.made()
        api.sandbox.hangs = True
        running = asyncio.create_task(api.rooms.run(ALICE, container, "1"))
        await api.sandbox.begun.wait()
        status, error = await api.send("DELETE", f"/v1/containers/{container}")
        assert status == 400 and (error["type"], error["code"]) == ("invalid_request_error", "container_error")
        assert error["message"].startswith("The container is in use.")
        # Nobody else is told that there is one, and it is all there.
        assert (await api.send("DELETE", f"/v1/containers/{container}", owner=BOB))[0] == 404
        assert (await api.send("GET", f"/v1/containers/{container}"))[0] == 200
        running.cancel()
        await asyncio.wait({running})
        assert (await api.send("DELETE", f"/v1/containers/{container}"))[0] == 200
        await api.rooms.aclose()

    in_fake_time(work())


async def test_a_record_that_cannot_be_read_harms_only_itself(api: Api, tmp_path: Path) -> None:
    broken, fine = await api.made(), await api.made()
    (tmp_path / "records" / f"{broken}.json").write_text("{")
    assert [one.id for one in await api.rooms.list(ALICE)] == [fine]
    assert await api.rooms.sweep() == (0,)
    for name in ("../../etc/passwd", "cntr_", "cntr_../x", "x", "cntr_" + "a" * 100):
        assert await api.rooms.get(ALICE, name) is None


@pytest.mark.parametrize(
    "body", [b'{"file_id":"\xff"}', b'{"\xff":1}', b'{"file_id":"\\ud800"}', b"[", b"[]", b'{"file_id":5}', b"[" * 4000]
)
async def test_a_body_that_is_none_is_the_clients_fault(api: Api, body: bytes) -> None:
    _, made = await api.send("POST", "/v1/containers", {"name": "x"})
    status, got = await api.send(
        "POST", f"/v1/containers/{made['id']}/files", body, headers=(("content-type", "application/json"),)
    )
    assert status == 400 and got["type"] == "invalid_request_error", got
