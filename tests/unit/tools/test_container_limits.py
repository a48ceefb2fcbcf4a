"""Containers and the tool over them, at their limits; places of the toolbox; output; what is given back."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings, ToolSettings
from antiphon.engine.ports.containers import ContainerFailed, ContainerHead, ContainerRequest, ContainerRow, RowFile
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError, InvalidRequest, NotFound, StoreError
from antiphon.observability.metrics import Metrics
from antiphon.tools.box import LazyTool, Places, Toolbox, ToolFailed
from antiphon.tools.code_interpreter.containers import ContainerRooms
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.machine import CodeRun, Output
from antiphon.tools.code_interpreter.owners import OwnersContainers
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.tool import CodeInterpreter
from antiphon.translation.tool_map import CallKind, CallTarget
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_sandbox import MemorySandbox

OWNER, OTHER = "b:alice", "b:bob"
REQUEST = ContainerRequest("n", 1 << 30, 60.0)


async def _bytes(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


class Rooms:
    def __init__(self, folder: Path, **limits: Any) -> None:
        self.now = 100.0
        self.folder = folder
        self.sandbox = MemorySandbox()
        self.files = MemoryFileStore(clock=lambda: self.now)
        self.records = Records(folder)
        self.rooms = ContainerRooms(
            self.sandbox,
            RecordedRows(self.records, lambda: self.now),
            self.files,
            clock=lambda: self.now,
            **limits,
        )

    async def upload(self, name: str, data: bytes, owner: str = OWNER) -> str:
        async with self.files.uploading() as upload:
            await upload.write(data)
            fields = FileFields(f"file-{len(self.files.all)}", name, "user_data", "text/plain", self.now)
            return (await upload.keep(owner, fields)).id


@pytest.fixture
def made(tmp_path: Path) -> Rooms:
    return Rooms(tmp_path / "records")


# How long, how many


@pytest.mark.parametrize(("after", "gone"), [(59.9, False), (60.0, False), (60.1, True)])
async def test_a_container_expires(made: Rooms, after: float, gone: bool) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    await made.rooms.put(OWNER, one.id, "a", _bytes(b"x"))
    made.now += 30.0
    # Being looked at is no use; its files are.
    assert await made.rooms.get(OWNER, one.id) is not None and len(await made.rooms.list(OWNER)) == 1
    listed = await made.rooms.files(OWNER, one.id)
    assert listed is not None and len(listed) == 1
    made.now += after
    assert (await made.rooms.get(OWNER, one.id) is None) is gone and (await made.rooms.list(OWNER) == []) is gone
    assert await made.rooms.sweep() == (int(gone),) and await made.rooms.sweep() == (0,)
    assert (await made.rooms.run(OWNER, one.id, "1") is None) is gone
    assert list(made.sandbox.files) == ([] if gone else [one.id])


@pytest.mark.parametrize(
    ("limit", "per_owner", "said"), [(9, 2, "You have reached your limit"), (2, 9, "The server has reached its limit")]
)
async def test_so_many_containers_there_may_be(tmp_path: Path, limit: int, per_owner: int, said: str) -> None:
    made = Rooms(tmp_path, limit=limit, per_owner=per_owner)
    for _ in range(2):
        await made.rooms.create(OWNER, REQUEST)
    with pytest.raises(ContainerFailed, match=said):
        await made.rooms.create(OWNER, REQUEST)
    if per_owner == 2:
        await made.rooms.create(OTHER, REQUEST)
    made.now += 60.1
    await made.rooms.create(OWNER, REQUEST)


async def test_of_nobody_elses_container_anything_is_done(made: Rooms) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    file = await made.rooms.put(OWNER, one.id, "a", _bytes(b"x"))
    assert file is not None
    before = made.records.get(one.id)
    for container_id in (one.id, "cntr_none", "../x"):
        owner = OTHER if container_id == one.id else OWNER
        assert await made.rooms.get(owner, container_id) is None and not await made.rooms.delete(owner, container_id)
        assert await made.rooms.files(owner, container_id) is None and await made.rooms.list(OTHER) == []
        assert await made.rooms.run(owner, container_id, "1") is None
        assert await made.rooms.put(owner, container_id, "b", _bytes(b"y")) is None
        assert await made.rooms.put_uploaded(owner, container_id, "file-0") is None
        assert await made.rooms.read(owner, container_id, file.id, 0, 9) is None
        assert not await made.rooms.remove(owner, container_id, file.id)
    assert made.records.get(one.id) == before and made.sandbox.ran == []
    assert await made.rooms.read(OWNER, one.id, "cfile_none", 0, 9) is None
    assert await made.rooms.read(OWNER, one.id, file.id, 0, 9) == b"x"
    assert not await made.rooms.remove(OWNER, one.id, "cfile_none") and await made.rooms.remove(OWNER, one.id, file.id)
    assert made.sandbox.files[one.id] == {} and await made.rooms.read(OWNER, one.id, file.id, 0, 9) is None


# What is in it


async def test_what_code_makes_and_changes_is_told(made: Rooms) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    await made.rooms.put(OWNER, one.id, "in", _bytes(b"x"))
    made.now += 5
    code = "open('in').read(); open('new', 'w').write('abc')"
    ran = await made.rooms.run(OWNER, one.id, code)
    assert ran is not None and [(file.path, file.size, file.source) for file in ran.files] == [("new", 3, "assistant")]
    again = await made.rooms.run(OWNER, one.id, "open('in', 'w').write('changed')")
    assert again is not None and [(file.path, file.source) for file in again.files] == [("in", "assistant")]
    assert not again.forgot and ran.files[0].created_at == 105.0
    quiet = await made.rooms.run(OWNER, one.id, "1")
    assert quiet is not None and quiet.files == () and not quiet.forgot
    record = made.records.get(one.id)
    assert record is not None and (record.runs, record.last_active_at) == (3, 105.0)
    await made.sandbox.stop(one.id)
    last = await made.rooms.run(OWNER, one.id, "1")
    assert last is not None and last.forgot


async def test_uploads_are_copied_once_and_named(made: Rooms) -> None:
    large = await made.upload("dir/large.bin", bytes(3 << 20))
    other = await made.upload("theirs", b"x", OTHER)
    with pytest.raises(NotFound):
        await made.rooms.create(OWNER, ContainerRequest("n", 1 << 30, 60.0, (large, other)))
    assert await made.rooms.list(OWNER) == [] and made.sandbox.files == {}
    one = await made.rooms.create(OWNER, ContainerRequest("n", 1 << 30, 60.0, (large,)))
    assert made.sandbox.files[one.id]["large.bin"][0] == bytes(3 << 20)
    made.sandbox.files[one.id].clear()
    await made.rooms.run(OWNER, one.id, "1", (large,))
    assert made.sandbox.files[one.id] == {}  # whatever code has done to the copy
    copied = await made.rooms.put_uploaded(OWNER, one.id, large)
    assert copied is not None and copied.source == "user" and "large.bin" in made.sandbox.files[one.id]
    for wrong in (other, "none", "../x", "x" * 200):
        with pytest.raises(NotFound) as missing:
            await made.rooms.put_uploaded(OWNER, one.id, wrong)
        assert missing.value.message.endswith(wrong[:128])
    without = ContainerRooms(made.sandbox, RecordedRows(made.records, lambda: made.now), None)
    with pytest.raises(NotFound):
        await without.check_uploaded(OWNER, large)


async def test_a_container_whose_files_cannot_be_copied_is_none(made: Rooms) -> None:
    file_id = await made.upload("a", b"x")

    made.sandbox.broken["put"] = SandboxFailed("The container is full.")
    with pytest.raises(ContainerFailed, match="is full"):
        await made.rooms.create(OWNER, ContainerRequest("n", 1 << 30, 60.0, (file_id,)))
    assert made.records.every() == [] and not made.rooms.uses.locks
    one = await made.rooms.create(OWNER, REQUEST)
    made.now += 7
    with pytest.raises(ContainerFailed, match="is full"):
        await made.rooms.put(OWNER, one.id, "a", _bytes(b"x"))
    record = made.records.get(one.id)
    assert record is not None and record.last_active_at == 107.0  # it was used all the same


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("a" * 255, "a" * 255),
        ("a" * 256, None),
        ("ä" * 127, "ä" * 127),
        ("ä" * 128, None),
        ("", None),
        ("..", None),
        ("a/..", None),
        ("dir/a", "a"),
        ("a\nb", None),
        ("\ud800", None),
    ],
)
async def test_what_can_be_a_name(made: Rooms, name: str, kept: str | None) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    if kept is None:
        with pytest.raises(ContainerFailed, match="cannot have this name"):
            await made.rooms.put(OWNER, one.id, name, _bytes(b"x"))
        return
    file = await made.rooms.put(OWNER, one.id, name, _bytes(b"x"))
    assert file is not None and file.path == kept


@pytest.mark.parametrize("failing", ["run", "list", "remove", "read"])
async def test_what_the_sandbox_cannot_do_is_told(made: Rooms, failing: str) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    file = await made.rooms.put(OWNER, one.id, "a", _bytes(b"x"))
    assert file is not None

    made.sandbox.broken[failing] = SandboxFailed("It is broken.")
    if failing == "read":
        assert await made.rooms.read(OWNER, one.id, file.id, 0, 1) is None
        return
    with pytest.raises(ContainerFailed, match="broken"):
        await (made.rooms.remove(OWNER, one.id, file.id) if failing == "remove" else made.rooms.run(OWNER, one.id, "1"))
    assert not made.rooms.uses.locks


async def test_what_a_process_left_is_cleared_unless_somebody_uses_it(made: Rooms) -> None:
    one = await made.rooms.create(OWNER, REQUEST)
    await made.rooms.put(OWNER, one.id, "a", _bytes(b"x"))
    for name in ("cntr_left", "cntr_used"):
        made.sandbox.files[name] = {}
    async with made.rooms.uses.alone("cntr_used"):
        assert await made.rooms.sweep() == (0,)
        assert set(made.sandbox.files) == {one.id, "cntr_used"}
    assert await made.rooms.sweep() == (0,) and set(made.sandbox.files) == {one.id}
    await made.rooms.drop(one.id)
    assert made.sandbox.files == {} and made.records.every() == [] and not made.rooms.uses.locks
    assert sorted(one.name for one in made.folder.iterdir()) == []


# Records


def _record(name: str, at: float = 1.0) -> ContainerRow:
    made = ContainerRow(f"cntr_{name}", OWNER, name, at, at, 60.0, 5)
    made.contents.files = [RowFile("cfile_1", "a", 1, "v", 1.0, "user")]
    return made


def test_records_come_oldest_first_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    records = Records(tmp_path / "deep" / "records")
    assert records.every() == [] and records.get("cntr_a") is None
    for name, at in (("b", 2.0), ("c", 1.0), ("a", 2.0)):
        records.put(_record(name, at))
    folder = tmp_path / "deep" / "records"
    (folder / "cntr_d.json").write_bytes(b"{")
    (folder / "cntr_e.json.part").write_bytes(b"{}")
    (folder / "cntr_a.lock").touch()
    assert [head.id for head in records.every()] == ["cntr_c", "cntr_a", "cntr_b"]
    assert all(type(head) is ContainerHead for head in records.every())
    assert sorted(one.suffix for one in folder.iterdir()) == [".json"] * 4 + [".lock", ".part"]
    with pytest.raises(StoreError, match="cannot be read"):
        records.get("cntr_d")
    path = folder / "cntr_a.json"
    path.write_bytes(path.read_bytes().partition(b"\n")[0] + b"\n[]")
    with pytest.raises(StoreError, match="cannot be read"):
        records.get("cntr_a")
    assert records.head("cntr_a") is not None and records.get("cntr_a", OTHER) is None
    records.delete("cntr_a")
    records.delete("cntr_a")
    assert records.head("cntr_a") is None and not (folder / "cntr_a.lock").exists()


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_record_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path)

    def refuses(self: Path, target: Path) -> Any:
        raise OSError(28, "full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuses)
        with pytest.raises(StoreError, match="cannot be written"):
            records.put(_record("a"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    below = Records(tmp_path / "file" / "records")
    with pytest.raises(StoreError, match="cannot be locked"):
        below.lock("cntr_a")
    with pytest.raises(StoreError, match="cannot be written"):
        below.put(_record("a"))


def test_a_lock_is_one_at_a_time_and_no_descriptor_is_left(tmp_path: Path) -> None:
    records = Records(tmp_path)
    before = _descriptors()
    held = records.lock("cntr_a")
    assert held is not None and not os.get_inheritable(held)
    assert records.lock("cntr_a") is None and _descriptors() == before + 1
    other = records.lock("cntr_b")
    assert other is not None
    os.close(other)
    # Its file was deleted, and there is another one: then the lock is of nothing.
    (tmp_path / "cntr_a.lock").unlink()
    again = records.lock("cntr_a")
    assert again is not None
    os.close(again)
    os.close(held)
    assert _descriptors() == before


def test_a_lock_on_a_file_that_somebody_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = Records(tmp_path)
    before = _descriptors()
    opens = os.open

    def deleted(path: Any, *given: Any, **named: Any) -> int:
        made = opens(path, *given, **named)
        os.unlink(path)
        return made

    def replaced(path: Any, *given: Any, **named: Any) -> int:
        made = deleted(path, *given, **named)
        os.close(opens(path, os.O_CREAT | os.O_WRONLY))
        return made

    for way in (deleted, replaced):
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", way)
            assert records.lock("cntr_a") is None
    assert _descriptors() == before


# What an operator sees


async def test_an_owners_containers(tmp_path: Path) -> None:
    owners = OwnersContainers(tmp_path)
    assert await owners.count() == {} and await owners.export(OWNER) == [] and list(tmp_path.iterdir()) == []
    records = Records(tmp_path / "containers" / "records")
    for name in ("a", "b"):
        records.put(_record(name))
    records.put(ContainerRow("cntr_c", OTHER, "c", 1.0, 2.0, 60.0, 5, runs=3))
    for name, files in (("a", {"a": b"x" * (1 << 20) + b"y", "new": b"zz"}), ("c", {"c": b"c"})):
        folder = tmp_path / "containers" / "machines" / f"cntr_{name}" / "files"
        folder.mkdir(parents=True)
        for path, data in files.items():
            (folder / path).write_bytes(data)
    assert await owners.count() == {OWNER: 2, OTHER: 1}
    assert await owners.export(OTHER) == [
        ("containers", "cntr_c", 1.0, {"name": "c", "last_active_at": 2.0, "runs": 3}),
        ("container_files", "", "cntr_c", {"path": "c", "bytes": 1, "source": ""}),
    ]
    exported = await owners.export(OWNER)
    assert [row[:3] for row in exported] == [
        ("containers", "cntr_a", 1.0),
        ("container_files", "cfile_1", "cntr_a"),
        ("container_files", "", "cntr_a"),
        ("containers", "cntr_b", 1.0),
    ]
    assert exported[1][3] == {"path": "a", "bytes": (1 << 20) + 1, "source": "user"}
    read = {}
    async for container, path, parts in owners.contents(OWNER):
        read[container, path] = [len(part) async for part in parts]
    assert read == {("cntr_a", "a"): [1 << 20, 1], ("cntr_a", "new"): [2]}
    assert await owners.delete(OWNER) == 2 and await owners.count() == {OTHER: 1}
    assert not (tmp_path / "containers" / "machines" / "cntr_a").exists()


# The tool


def _tool(container: Any = None) -> HostedTool:
    declared = {"type": "code_interpreter", "container": container or {"type": "auto"}}
    return HostedTool(0, "code_interpreter", json.dumps(declared).encode())


def _call(response_id: str = "resp_1", declared: HostedTool | None = None, code: str = "1") -> HostedCall:
    target = CallTarget(CallKind.CODE_INTERPRETER, "code_interpreter")
    return HostedCall("call_1", "ci_1", target, code, declared or _tool(), OWNER, response_id)


async def test_only_so_many_choices_are_remembered(made: Rooms) -> None:
    tool = CodeInterpreter(made.rooms, CodeInterpreterSettings(), remembered=2)

    async def chosen(response_id: str) -> str:
        return str((await tool.prepare(OWNER, response_id, _tool())).fields["container_id"])

    first, second = await chosen("resp_1"), await chosen("resp_2")
    assert (await chosen("resp_1"), await chosen("resp_2")) == (first, second)
    await chosen("resp_3")
    assert await chosen("resp_2") == second
    assert await chosen("resp_1") != first


@pytest.mark.parametrize(
    ("declared", "param"),
    [
        ({"container": {"type": "other"}}, "tools[0].container.type"),
        ({"container": {}}, "tools[0].container.type"),
        ({"container": None}, "tools[0].container"),
        ({"container": "cntr_none"}, "tools[0].container"),
        ({"container": {"type": "auto", "network_policy": {"type": "allowlist"}}}, "tools[0].container.network_policy"),
        ({"container": {"type": "auto", "file_ids": ["none"]}}, "tools[0].container.file_ids[0]"),
    ],
)
async def test_what_is_wrong_in_a_declaration_is_named(made: Rooms, declared: dict[str, Any], param: str) -> None:
    given = HostedTool(0, "code_interpreter", json.dumps({"type": "code_interpreter", **declared}).encode())
    tool = CodeInterpreter(made.rooms, CodeInterpreterSettings())
    with pytest.raises(InvalidRequest) as refused:
        await tool.prepare(OWNER, "resp_1", given)
    assert refused.value.param == param
    fine = {"type": "auto", "network_policy": {"type": "disabled"}, "file_ids": [await made.upload("a", b"x")] * 2}
    assert "user's: a." in (await tool.prepare(OWNER, "resp_2", _tool(fine))).functions[0].description


@pytest.mark.parametrize(("files", "named"), [(19, 19), (20, 20), (21, 20)])
async def test_so_many_files_are_named(made: Rooms, files: int, named: int) -> None:
    ids = [await made.upload(f"f{number:02}", b"x") for number in range(files)]
    tool = CodeInterpreter(made.rooms, CodeInterpreterSettings())
    prepared = await tool.prepare(OWNER, "resp_1", _tool({"type": "auto", "file_ids": ids}))
    assert prepared.functions[0].description.endswith(f" f{named - 1:02}.")
    code = f"for i in range({files}): open(f'g{{i:02}}', 'w').write('a')"
    result = await tool.run(_call(code=json.dumps({"code": code})))
    assert len(result.sources) == named and result.output.count("/mnt/data/") == named
    assert ("and 1 more" in result.output) is (files > named)


@pytest.mark.parametrize(
    ("run", "output", "outputs"),
    [
        (CodeRun(""), "[It printed nothing.]", []),
        (CodeRun(" \n"), "[It printed nothing.]", [" \n"]),
        (CodeRun("a\n\n"), "a", ["a\n\n"]),
        (CodeRun("", (b"p",)), "[1 picture, shown to the user.]", ["image"]),
        (CodeRun("a", (b"p", b"q")), "a\n[2 pictures, shown to the user.]", ["a", "image", "image"]),
    ],
)
async def test_what_the_model_reads(made: Rooms, run: CodeRun, output: str, outputs: list[str]) -> None:
    made.sandbox.answer = run
    result = await CodeInterpreter(made.rooms, CodeInterpreterSettings()).run(_call())
    assert result.output == output and not result.failed and result.images == ()
    assert [one.get("logs", one["type"]) for one in result.fields["outputs"]] == outputs


@pytest.mark.parametrize("code", ["", "  ", '{"code": " "}', '{"code": ""}', "{}"])
async def test_without_code_nothing_runs(made: Rooms, code: str) -> None:
    with pytest.raises(ToolFailed, match="no code"):
        await CodeInterpreter(made.rooms, CodeInterpreterSettings()).run(_call(code=code))
    assert made.sandbox.ran == []


# Output


@pytest.mark.parametrize(("printed", "left_out"), [(7, 0), (8, 0), (9, 1), (20, 12)])
def test_beginning_and_end_of_what_is_printed_are_kept(printed: int, left_out: int) -> None:
    text = "".join(chr(ord("a") + number) for number in range(printed))
    gap = f"\n[{left_out} bytes are left out here.]\n" if left_out else ""
    kept = text[:6] + gap + text[max(6, printed - 2) :]
    for size in (1, 2, 5, 100):
        out = Output(8)
        out.begin(b"<mark>")
        for at in range(0, printed, size):
            out.feed(text[at : at + size].encode())
        assert not out.marked.is_set()
        assert out.take() == kept and out.take() == kept
    whole = Output(8)
    whole.begin(b"")
    whole.feed(text.encode())
    assert whole.take() == kept and not whole.marked.is_set()


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 100])
def test_the_mark_ends_it_however_it_comes(size: int) -> None:
    out = Output(100)
    data = b"one<mar<mark>late<mark>"
    for round_ in range(2):
        out.begin(b"<mark>")
        for at in range(0, len(data), size):
            out.feed(data[at : at + size])
        assert out.marked.is_set() and out.take() == "one<mar", round_
    # What looks like its beginning is output when nothing follows.
    out.begin(b"<mark>")
    out.feed(b"a<mar")
    assert out.take() == "a<mar" and not out.marked.is_set()


# Whose turn it is


@pytest.mark.parametrize(
    ("total", "of_response", "of_owner"), [(2, 2, 2), (8, 2, 6), (11, 2, 8), (12, 3, 9), (16, 4, 12)]
)
async def test_shares_of_the_places(total: int, of_response: int, of_owner: int) -> None:
    places, running = Places(total), 0
    gate = asyncio.Event()

    async def run(owner: str, response_id: str) -> None:
        nonlocal running
        async with places.one(owner, response_id):
            running += 1
            await gate.wait()

    async def settled() -> int:
        for _ in range(10):
            await asyncio.sleep(0)
        return running

    tasks = [asyncio.create_task(run("a", "r")) for _ in range(20)]
    assert await settled() == of_response
    tasks += [asyncio.create_task(run("a", f"r{number}")) for number in range(20)]
    assert await settled() == of_owner
    tasks += [asyncio.create_task(run("b", f"r{number}")) for number in range(20)]
    assert await settled() == total
    gate.set()
    await asyncio.gather(*tasks)
    assert places.untouched


# The toolbox


class _Tool:
    types = frozenset({"file_search"})

    def __init__(self, output: str = "", *, fails: BaseException | None = None) -> None:
        self.output, self.fails = output, fails
        self.closed = 0

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        return PreparedTool(tool, (), fields={"by": (owner, response_id)})

    async def run(self, call: HostedCall) -> ToolResult:
        if self.fails is not None:
            raise self.fails
        return ToolResult(call.call_id, self.output, {})

    async def aclose(self) -> None:
        self.closed += 1


SEARCH = HostedTool(0, "file_search", b'{"type":"file_search"}')
CALL = HostedCall("call_1", "fs_1", CallTarget(CallKind.FILE_SEARCH, "file_search"), "{}", SEARCH, OWNER, "resp_1")


@pytest.mark.parametrize(("length", "cut"), [(999, False), (1_000, False), (1_001, True)])
async def test_how_long_a_result_may_be(length: int, cut: bool) -> None:
    result = await Toolbox([_Tool("x" * length)], ToolSettings(output_chars=1_000)).run(CALL)
    assert result.output.count("x") == min(length, 1_000) and result.output.endswith("too long.]") is cut


@pytest.mark.parametrize("fails", [None, ToolFailed("no"), ZeroDivisionError()])
async def test_every_call_is_counted_with_its_time(fails: BaseException | None) -> None:
    metrics = Metrics()
    box = Toolbox([_Tool(fails=fails)], ToolSettings(), metrics)
    for _ in range(2):
        await box.run(CALL)
    lines = dict(line.rpartition(" ")[::2] for line in metrics.render().decode().splitlines() if line[:1] != "#")
    assert lines['tool_execution_duration_seconds_count{tool="file_search"}'] == "2.0"
    assert 0 <= float(lines['tool_execution_duration_seconds_sum{tool="file_search"}']) < 60


async def test_a_lazy_tool_is_made_once_when_it_is_needed() -> None:
    tool, count = _Tool("fine"), 0

    def make() -> _Tool:
        nonlocal count
        count += 1
        return tool

    lazy = LazyTool(tool.types, make)
    await lazy.aclose()
    assert (count, tool.closed) == (0, 0)
    results = await asyncio.gather(*(lazy.run(CALL) for _ in range(3)))
    prepared = await lazy.prepare(OWNER, "resp_9", SEARCH)
    assert [one.output for one in results] == ["fine"] * 3 and prepared.fields == {"by": (OWNER, "resp_9")}
    await lazy.aclose()
    assert (count, tool.closed) == (1, 1)


async def test_all_are_prepared_in_their_order() -> None:
    box = Toolbox([_Tool()], ToolSettings())
    several = tuple(replace(SEARCH, index=number) for number in range(3))
    prepared = await box.prepare(OWNER, "resp_1", several)
    assert not isinstance(prepared, ApiError)
    assert [one.tool.index for one in prepared] == [0, 1, 2] and prepared[0].fields == {"by": (OWNER, "resp_1")}
