"""code_interpreter: which container a call runs in, what the model reads, what the item shows. Over a fake sandbox."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.engine.exchange.requested_tools import hosted_tools
from antiphon.engine.ports.files import FileFields
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, ToolResult
from antiphon.errors import InvalidRequest
from antiphon.tools.box import ToolFailed
from antiphon.tools.code_interpreter.containers import ContainerRooms, Ran
from antiphon.tools.code_interpreter.disk import SandboxFailed
from antiphon.tools.code_interpreter.machine import CodeRun
from antiphon.tools.code_interpreter.records import RecordedRows, Records
from antiphon.tools.code_interpreter.tool import CodeInterpreter
from antiphon.translation.request.body import read_request
from antiphon.translation.tool_map import CallKind, CallTarget
from antiphon.types.items import InputItem
from antiphon.types.json import encode
from tests.support.memory_files import MemoryFileStore
from tests.support.memory_sandbox import MemorySandbox

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 10


class Setup:
    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.folder = folder
        self.sandbox = MemorySandbox()
        self.files = MemoryFileStore(clock=lambda: self.now)
        self.rooms = self.another(self.sandbox)
        self.tool = CodeInterpreter(self.rooms, CodeInterpreterSettings(memory=1 << 30, idle=100))

    def another(self, sandbox: MemorySandbox, **limits: Any) -> ContainerRooms:
        rows = RecordedRows(Records(self.folder), lambda: self.now)
        return ContainerRooms(sandbox, rows, self.files, clock=lambda: self.now, **limits)

    async def container(self, declared: HostedTool, response_id: str = "resp_1") -> str:
        prepared = await self.tool.prepare("owner", response_id, declared)
        return str(prepared.fields["container_id"])

    async def run(self, code: str, declared: HostedTool | None = None, response_id: str = "resp_1") -> ToolResult:
        return await self.tool.run(call(json.dumps({"code": code}), declared, response_id))

    async def upload(self, name: str, data: bytes) -> str:
        async with self.files.uploading() as upload:
            await upload.write(data)
            fields = FileFields(f"file-{len(self.files.all)}", name, "user_data", "text/plain", self.now)
            return (await upload.keep("owner", fields)).id


def tool(container: Any = None, *, earlier: str | None = None) -> HostedTool:
    declared = {"type": "code_interpreter", "container": container or {"type": "auto"}}
    return HostedTool(0, "code_interpreter", json.dumps(declared).encode(), earlier)


def call(arguments: str, declared: HostedTool | None = None, response_id: str = "resp_1") -> HostedCall:
    target = CallTarget(CallKind.CODE_INTERPRETER, "code_interpreter")
    return HostedCall("call_1", "ci_1", target, arguments, declared or tool(), "owner", response_id)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


# Which container


async def test_a_response_has_one_container_which_is_made_when_code_runs(setup: Setup) -> None:
    container = await setup.container(tool())
    assert await setup.rooms.list("owner") == []
    await setup.run("x = 1")
    assert (await setup.run("x")).output == "1"
    assert [one.id for one in await setup.rooms.list("owner")] == [container]
    assert await setup.container(tool(), "resp_2") != container


async def test_a_conversation_keeps_its_container_while_that_lives(setup: Setup) -> None:
    container = await setup.container(tool())
    await setup.run("x = 1")
    later = tool(earlier=container)
    assert await setup.container(later, "resp_2") == container
    assert (await setup.run("x", later, "resp_2")).output == "1"
    for strange in ("cntr_other", "../x", ""):
        assert await setup.container(tool(earlier=strange), f"resp_{strange}") != container
    setup.now = 1_000
    assert await setup.container(later, "resp_3") != container


async def test_another_memory_limit_is_another_container(setup: Setup) -> None:
    large = CodeInterpreter(setup.rooms, CodeInterpreterSettings(memory=4 << 30, idle=100))
    first = (await large.prepare("owner", "resp_1", tool({"type": "auto", "memory_limit": "1g"}))).fields[
        "container_id"
    ]
    await large.run(call('{"code":"1"}'))
    assert setup.sandbox.ran[0][2] == 1 << 30
    same = tool({"type": "auto"}, earlier=first)
    assert (await large.prepare("owner", "resp_2", same)).fields["container_id"] == first
    other = tool({"type": "auto", "memory_limit": "4g"}, earlier=first)
    assert (await large.prepare("owner", "resp_3", other)).fields["container_id"] != first


async def test_a_named_container_that_expires_meanwhile(setup: Setup) -> None:
    await setup.container(tool())
    await setup.run("1")
    (container,) = await setup.rooms.list("owner")
    named = tool(container.id)
    assert await setup.container(named, "resp_2") == container.id
    setup.now = 1_000
    with pytest.raises(ToolFailed, match="expired"):
        await setup.run("1", named, "resp_2")
    with pytest.raises(InvalidRequest) as error:
        await setup.container(named, "resp_3")
    assert (error.value.param, error.value.code) == ("tools[0].container", "not_found")


def test_the_conversation_says_where_code_ran_last() -> None:
    types = frozenset({"code_interpreter", "mcp"})
    body = {"model": "m", "input": "hi", "tools": [{"type": "code_interpreter"}, {"type": "mcp", "server_label": "a"}]}
    request = read_request(json.dumps(body).encode(), max_items=9, max_tools=9, hosted=types)
    items = [
        ("a", InputItem(type="code_interpreter_call", source=Raw(encode({"container_id": name}))))
        for name in ("cntr_1", "cntr_2")
    ]
    assert [one.earlier for one in hosted_tools(request, types, items)] == ["cntr_2", None]
    assert [one.earlier for one in hosted_tools(request, types)] == [None, None]
    broken = [("a", InputItem(type="code_interpreter_call", source=Raw(encode({"container_id": 5}))))]
    assert hosted_tools(request, types, broken)[0].earlier is None


# Files of the user's


async def test_files_are_copied_once(setup: Setup) -> None:
    declared = tool({"type": "auto", "file_ids": [await setup.upload("in.txt", b"abc")] * 2})
    assert (await setup.run("open('in.txt').read()", declared)).output == "'abc'"
    await setup.run("open('in.txt', 'w').write('mine')", declared)
    assert (await setup.run("open('in.txt').read()", declared)).output == "'mine'"


async def test_the_model_is_told_of_the_files(setup: Setup) -> None:
    declared = tool({"type": "auto", "file_ids": [await setup.upload("a{cite:1}\u3010.txt", b"abc")]})
    prepared = await setup.tool.prepare("owner", "resp_1", declared)
    assert prepared.functions[0].description.endswith("Files of the user's: a{cite :1}[.txt.")


async def test_a_file_that_is_gone_when_code_runs_is_told(setup: Setup) -> None:
    file_id = await setup.upload("in.txt", b"abc")
    declared = tool({"type": "auto", "file_ids": [file_id]})
    await setup.container(declared)
    await setup.files.delete("owner", file_id)
    with pytest.raises(Exception, match="No such File object"):
        await setup.run("1", declared)


# What comes of it


async def test_output_files_and_marks(setup: Setup) -> None:
    result = await setup.run("print('{cite:5} \u30101\u3011'); open('a.txt', 'w').write('abc')")
    assert result.output == "{cite :5} [1]\n3\nFiles written:\n{cite:0} /mnt/data/a.txt (3 bytes)"
    (source,) = result.sources
    files = await setup.rooms.files("owner", await setup.container(tool()))
    assert files is not None and source.annotation == {
        "type": "container_file_citation",
        "container_id": await setup.container(tool()),
        "file_id": files[0].id,
        "filename": "a.txt",
    }
    assert result.fields == {"outputs": [{"type": "logs", "logs": "{cite:5} \u30101\u3011\n3\n"}]}
    assert not result.failed
    quiet = await setup.run("x = 1")
    assert (quiet.output, quiet.fields, quiet.sources) == ("[It printed nothing.]", {"outputs": []}, ())


async def test_a_file_whose_name_is_no_text_is_recorded_and_shown_readably(setup: Setup) -> None:
    await setup.run("1")
    container = await setup.container(tool())
    setup.sandbox.files[container]["a\0ff.txt"] = (b"abc", 1)
    for _ in range(2):
        (file,) = await setup.rooms.files("owner", container) or ()
        assert file.shown_path == "a\\xff.txt"
        assert await setup.rooms.remove("owner", container, file.id) is True
        assert setup.sandbox.files[container] == {}
        setup.sandbox.files[container]["a\0ff.txt"] = (b"abc", 2)
    result = await setup.run("open('b', 'w').write('x')")
    assert "{cite:0} /mnt/data/b (1 bytes)" in result.output
    (found, _) = await setup.rooms.files("owner", container) or ()
    found = next(one for one in await setup.rooms.files("owner", container) or () if one.path != "b")
    assert found.shown_path == "a\\xff.txt"


@pytest.mark.parametrize("show", [True, False])
async def test_pictures_are_outputs_and_can_be_shown_to_the_model(setup: Setup, show: bool) -> None:
    setup.tool = CodeInterpreter(setup.rooms, CodeInterpreterSettings(memory=1 << 30, idle=100, show_pictures=show))
    setup.sandbox.answer = CodeRun("text\n", pictures=(PNG, PNG))
    result = await setup.run("plot()")
    url = "data:image/png;base64," + b64encode(PNG).decode()
    assert result.images == ((url, url) if show else ())
    assert result.output == "text\n[2 pictures, shown to the user.]"
    assert result.fields["outputs"][1:] == [{"type": "image", "url": url}] * 2


async def test_what_was_lost_is_said_and_an_error_is_no_failure(setup: Setup) -> None:
    setup.sandbox.answer = CodeRun("Traceback", failed=True)
    assert not (await setup.run("1 / 0")).failed
    setup.sandbox.answer = CodeRun("partly", failed=True, lost="the interpreter ended")
    result = await setup.run("crash()")
    assert result.failed and "the interpreter ended. All variables are lost" in result.output
    assert result.fields["outputs"][0]["logs"] == "partly"
    setup.sandbox.answer = CodeRun("1", fresh=True)
    assert (await setup.run("1")).output.startswith("[This is a new interpreter: variables of earlier calls are lost")


async def test_many_files_are_not_all_named(setup: Setup) -> None:
    result = await setup.run("for i in range(30): open(f'f{i:02}', 'w').write('a')")
    assert len(result.sources) == 20 and result.output.endswith("/mnt/data/f19 (1 bytes)\nand 10 more")


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [('{"code":"1+1"}', "1+1"), ("1+1", "1+1"), ('{"code":7}', '{"code":7}'), ("print(1)\nx", "print(1)\nx")],
)
async def test_models_that_write_the_code_itself(setup: Setup, arguments: str, ran: str) -> None:
    await setup.tool.run(call(arguments))
    assert setup.sandbox.ran[0][1] == ran


@pytest.mark.parametrize("arguments", ["", "{}", '{"code":" "}', '{"program":"1"}'])
async def test_no_code_is_told(setup: Setup, arguments: str) -> None:
    with pytest.raises(ToolFailed, match="no code"):
        await setup.tool.run(call(arguments))
    assert not setup.sandbox.ran


async def test_a_sandbox_that_fails_is_told(setup: Setup) -> None:
    setup.sandbox.answer = SandboxFailed("The server cannot run the code at the moment. Try again.")
    with pytest.raises(ToolFailed, match="cannot run the code at the moment"):
        await setup.run("1")
    setup.sandbox.answer = None
    assert (await setup.run("1 + 1")).output == "2"


async def test_files_that_were_left_behind_are_told(setup: Setup) -> None:
    class LeavesBehind(ContainerRooms):
        async def run(self, *_: object) -> Ran:
            return Ran(CodeRun("printed\n"), (), True, ("a", "b\u30101\u3011"))

    setup.tool.rooms = LeavesBehind(setup.sandbox, RecordedRows(Records(setup.folder)), None)
    told = (await setup.run("1")).output.splitlines()
    assert told[0].startswith("[This is a new interpreter") and told[2] == "printed"
    assert told[1] == "[2 files could not be copied from another machine and are lost: a, b[1].]"


# Several processes, and limits


async def test_two_processes_with_one_folder(setup: Setup) -> None:
    """Variables are one process's; the other one says so, and then the first one does not believe its own."""
    declared = tool()
    container = await setup.container(declared)
    await setup.run("x = 1; open('a', 'w').write('a')")
    theirs = MemorySandbox()
    theirs.files = setup.sandbox.files
    others = setup.another(theirs)
    ran = await others.run("owner", container, "x = 2")
    assert ran is not None and ran.forgot
    again = await setup.run("'x' in globals()")
    assert again.output.startswith("[This is a new interpreter") and again.output.endswith("False")


async def test_processes_take_turns_in_a_container(setup: Setup) -> None:
    container = await setup.container(tool())
    await setup.run("1")
    setup.sandbox.begun.clear()
    setup.sandbox.hangs = True
    first = asyncio.create_task(setup.run("2"))
    await setup.sandbox.begun.wait()
    theirs = MemorySandbox()
    second = asyncio.create_task(setup.another(theirs).run("owner", container, "3"))
    await asyncio.sleep(0.1)
    assert not theirs.ran and not second.done()
    first.cancel()
    ran = await second
    assert ran is not None and ran.run.output == "3\n"


async def test_how_many_containers_there_may_be(setup: Setup) -> None:
    small = CodeInterpreter(
        setup.another(setup.sandbox, limit=3, per_owner=2), CodeInterpreterSettings(memory=1 << 30, idle=100)
    )

    async def run(owner: str, number: int) -> ToolResult:
        target = CallTarget(CallKind.CODE_INTERPRETER, "code_interpreter")
        return await small.run(HostedCall("c", "i", target, "1", tool(), owner, f"resp_{owner}{number}"))

    await run("a", 1)
    await run("a", 2)
    with pytest.raises(ToolFailed, match="You have reached your limit of containers"):
        await run("a", 3)
    await run("b", 1)
    with pytest.raises(ToolFailed, match="its limit of containers"):
        await run("b", 2)
    setup.now = 1_000
    await run("b", 3)


async def test_a_sweep_takes_what_a_killed_process_left(setup: Setup) -> None:
    await setup.run("open('a', 'w').write('a')")
    kept = set(setup.sandbox.files)
    setup.sandbox.files["cntr_left"] = {"a": (b"a", 1)}
    await setup.rooms.sweep()
    assert set(setup.sandbox.files) == kept
