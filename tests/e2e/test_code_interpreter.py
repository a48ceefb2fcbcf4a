"""Code that the model writes, run in the real sandbox, behind real Envoys and behind the HTTP door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.support.chat_server import Answer, ChatServer, Received, answer, chunk, completion, event, json_answer
from tests.support.gateway import Gateway, start_gateway
from tests.support.judge import check_response
from tests.support.postgres import PostgresServer
from tests.support.sandbox_trial import trial
from tests.support.seaweed import SeaweedServer
from tests.support.state import OWNER_KEY, SEALING_KEY

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.asyncio(loop_scope="module")]

_ARGUMENTS = {"relay": ("--mode", "relay"), "drive": ("--mode", "drive"), "http": ("--door", "http")}
_ENVIRON = {"ANTIPHON_CODE_INTERPRETER__SANDBOX": "local", "ANTIPHON_CODE_INTERPRETER__SECONDS": "3"}
AUTO: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
OUTPUTS: Any = ["code_interpreter_call.outputs"]


class Way:
    """A gateway whose model runs these pieces of code, one after another, and then says what it read."""

    def __init__(self, gateway: Gateway, server: ChatServer) -> None:
        self.gateway = gateway
        self.server = server

    def client(self, key: str = "alice") -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.gateway.base_url, api_key=key, max_retries=0)

    def script(self, *codes: str, say: str = "Done.") -> None:
        """`say` is empty when the response does not come that far."""
        self.server.requests.clear()
        self.server.script(*(_model(_call(code)) for code in codes), *([_model({"content": say})] if say else ()))

    @property
    def read(self) -> list[str]:
        """What the model read of its calls, in the last request."""
        messages = self.server.requests[-1].json["messages"]
        return [message["content"] for message in messages if message["role"] == "tool"]


def _call(code: str) -> dict[str, Any]:
    function = {"name": "code_interpreter", "arguments": json.dumps({"code": code})}
    return {"tool_calls": [{"index": 0, "id": "call_0", "type": "function", "function": function}]}


def _model(delta: dict[str, Any]) -> Any:
    def respond(request: Received) -> Answer:
        if not request.json.get("stream"):
            return json_answer(
                completion(delta.get("content", ""), **{k: v for k, v in delta.items() if k != "content"})
            )
        end = event(chunk(finish_reason="tool_calls" if "tool_calls" in delta else "stop"))
        return answer(parts=[event(chunk(delta)), end, b"data: [DONE]\n\n"])

    return respond


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=tuple(_ARGUMENTS))
async def way(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Way]:
    assert not trial().reason, "these tests need the local sandbox"
    async with ChatServer() as server:
        data = tmp_path_factory.mktemp(request.param)
        gateway = await start_gateway(server.base_url, data, *_ARGUMENTS[request.param], environ=_ENVIRON)
        try:
            yield Way(gateway, server)
        finally:
            status = await gateway.stop()
        assert status == 0, "\n".join(gateway.log[-30:])


async def _ask(client: openai.AsyncOpenAI, **more: Any) -> Any:
    request: dict[str, Any] = {
        "model": "demo-model",
        "input": "Calculate.",
        "tools": [AUTO],
        "include": OUTPUTS,
        **more,
    }
    if not request.get("stream"):
        response = await client.responses.create(**request)
    else:
        events = [event async for event in await client.responses.create(**request)]
        response = events[-1].response
        response.events = [event.type for event in events]
    check_response(json.loads(response.model_dump_json(exclude={"events"}, exclude_unset=True, warnings=False)))
    return response


@pytest.mark.parametrize("stream", [False, True])
async def test_code_files_and_citations(way: Way, stream: bool) -> None:
    code = "x = 6 * 7\nopen('/mnt/data/answer.txt', 'w').write(str(x))\nprint('The answer:', x)"
    async with way.client() as client:
        way.script(code, say="It is in answer.txt\u30101\u3011, enjoy.")
        response = await _ask(client, stream=stream)
        call, message = response.output
        assert (call.type, call.status, call.code) == ("code_interpreter_call", "completed", code)
        assert [(one.type, one.logs) for one in call.outputs] == [("logs", "The answer: 42\n2\n"[:-2])]
        assert way.read[0].startswith("The answer: 42\n") and "/mnt/data/answer.txt (2 bytes)" in way.read[0]
        (text,) = message.content
        assert text.text == "It is in answer.txt, enjoy."
        (cited,) = text.annotations
        assert (cited.type, cited.container_id, cited.filename) == (
            "container_file_citation",
            call.container_id,
            "answer.txt",
        )
        assert text.text[cited.start_index : cited.end_index] == "It is in answer.txt"
        if stream:
            kinds = [kind.removeprefix("response.") for kind in response.events]
            first = kinds.index("output_item.added")
            assert kinds[first : first + 7] == [
                "output_item.added",
                "code_interpreter_call.in_progress",
                "code_interpreter_call_code.delta",
                "code_interpreter_call_code.done",
                "code_interpreter_call.interpreting",
                "code_interpreter_call.completed",
                "output_item.done",
            ]
            assert "output_text.annotation.added" in kinds
        # The same container, its variables and its files, in a later response; nobody else's.
        way.script("print(x, open('answer.txt').read())")
        later = await _ask(client, stream=stream, previous_response_id=response.id)
        assert later.output[0].container_id == call.container_id and later.output[0].outputs[0].logs == "42 42\n"
        way.script("print('x' in globals())")
        fresh = await _ask(client, stream=stream)
        assert fresh.output[0].container_id != call.container_id and fresh.output[0].outputs[0].logs == "False\n"
    async with way.client("mallory") as client:
        named = {"type": "code_interpreter", "container": call.container_id}
        with pytest.raises(openai.BadRequestError):
            await _ask(client, tools=[named])


async def test_files_of_the_users(way: Way) -> None:
    async with way.client() as client:
        file = await client.files.create(file=("numbers.csv", b"1,2,3\n"), purpose="user_data")
        tool = {"type": "code_interpreter", "container": {"type": "auto", "file_ids": [file.id], "memory_limit": "1g"}}
        way.script("print(sum(map(int, open('numbers.csv').read().split(','))))")
        response = await _ask(client, tools=[tool])
        assert response.output[0].outputs[0].logs == "6\n"
        shown = way.server.requests[0].json["tools"][0]["function"]
        assert shown["name"] == "code_interpreter" and "numbers.csv" in shown["description"]
    async with way.client("mallory") as client:
        with pytest.raises(openai.BadRequestError) as error:
            await _ask(client, tools=[tool])
        assert error.value.param == "tools[0].container.file_ids[0]"


async def test_errors_and_limits_are_told_to_the_model(way: Way) -> None:
    async with way.client() as client:
        way.script("1 / 0", "x = 1\nwhile True: pass", "import os; os._exit(1)", "print('still here')")
        response = await _ask(client, stream=True)
        calls = response.output[:-1]
        assert [call.status for call in calls] == ["completed", "completed", "failed", "completed"]
        assert "ZeroDivisionError" in way.read[0] and "longer than 3 seconds" in way.read[1]
        assert "All variables are lost" in way.read[2] and way.read[3].endswith("\nstill here")
        assert response.status == "completed" and len({call.container_id for call in calls}) == 1


async def test_containers_by_the_official_client(way: Way) -> None:
    async with way.client() as client:
        uploaded = await client.files.create(file=("in.txt", b"from files"), purpose="user_data")
        container = await client.containers.create(name="mine", file_ids=[uploaded.id], memory_limit="1g")
        assert (container.object, container.status, container.memory_limit) == ("container", "running", "1g")
        big = bytes(range(256)) * 4 * 1024
        file = await client.containers.files.create(container.id, file=("big.bin", big))
        assert (file.path, file.bytes, file.source) == ("/mnt/data/big.bin", len(big), "user")
        copy = await client.containers.files.create(container.id, file_id=uploaded.id)
        assert copy.path == "/mnt/data/in.txt"
        way.script(
            "data = open('/mnt/data/big.bin', 'rb').read()\n"
            "open('back.bin', 'wb').write(data[::-1])\nprint(open('in.txt').read())"
        )
        tool = {"type": "code_interpreter", "container": container.id}
        response = await _ask(client, tools=[tool], stream=True)
        assert response.output[0].outputs[0].logs == "from files\n" and response.output[0].container_id == container.id
        files = {one.path: one async for one in client.containers.files.list(container.id)}
        assert sorted(files) == ["/mnt/data/back.bin", "/mnt/data/big.bin", "/mnt/data/in.txt"]
        back = files["/mnt/data/back.bin"]
        assert back.source == "assistant"
        got = await client.containers.files.content.retrieve(back.id, container_id=container.id)
        assert await got.aread() == big[::-1]
        again = await client.containers.files.retrieve(back.id, container_id=container.id)
        assert again.model_dump() == back.model_dump()
        await client.containers.files.delete(back.id, container_id=container.id)
        assert container.id in [one.id async for one in client.containers.list(limit=1)]
        await client.containers.delete(container.id)
        with pytest.raises(openai.NotFoundError):
            await client.containers.retrieve(container.id)
        with pytest.raises(openai.BadRequestError) as error:
            await _ask(client, tools=[tool])
        assert error.value.param == "tools[0].container"


async def test_without_include_there_are_no_outputs(way: Way) -> None:
    async with way.client() as client:
        way.script("print(1)")
        response = await _ask(client, include=[])
        assert response.output[0].outputs is None and way.read == ["1"]


def _sandboxes(data: Path) -> list[int]:
    """The processes of a gateway's sandboxes."""
    found = []
    for one in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            command = one.name.isdigit() and (one / "cmdline").read_bytes()
            if command and b"interpreter.py" in command and bytes(data) in command:
                found.append(int(one.name))
    return found


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "gone"


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
async def test_a_client_that_leaves_ends_the_code(way: Way) -> None:
    async with way.client() as client:
        way.script("import time; time.sleep(60)", say="")
        stream = await client.responses.create(model="demo-model", input="hi", tools=[AUTO], stream=True)
        async for event in stream:
            if event.type == "response.code_interpreter_call.interpreting":
                break
        # Those of other tests are frozen.
        async with asyncio.timeout(60):
            while not (running := [one for one in _sandboxes(way.gateway.data) if _state(one) in "RS"]):
                await asyncio.sleep(0.01)
        await stream.close()
        # Well before its time is up.
        async with asyncio.timeout(2.5):
            while set(running) & set(_sandboxes(way.gateway.data)):
                await asyncio.sleep(0.01)
        way.script("print('fine')")
        assert (await _ask(client)).output[0].outputs[0].logs == "fine\n"


@pytest.mark.slow
async def test_nothing_of_a_killed_gateway_goes_on_and_its_containers_are_found_again(tmp_path: Path) -> None:
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=_ENVIRON)
        way = Way(gateway, server)
        try:
            async with way.client() as client:
                way.script("open('kept', 'w').write('kept')")
                first = await _ask(client)
                way.script("import time; time.sleep(60)", say="")
                asking = asyncio.create_task(_ask(client))
                async with asyncio.timeout(60):
                    while len(_sandboxes(tmp_path)) < 2:
                        await asyncio.sleep(0.01)
                await gateway.stop(signal.SIGKILL)
                with pytest.raises(openai.APIConnectionError):
                    await asking
                async with asyncio.timeout(60):
                    while _sandboxes(tmp_path):
                        await asyncio.sleep(0.01)
            way.gateway = gateway = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=_ENVIRON)
            async with way.client() as client:
                way.script("print(open('kept').read())")
                later = await _ask(client, previous_response_id=first.id)
                assert later.output[0].outputs[0].logs == "kept\n" and "new interpreter" in way.read[-1]
        finally:
            await gateway.stop()


@pytest.mark.slow
async def test_containers_and_files_outlive_a_restart(tmp_path: Path) -> None:
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=_ENVIRON)
        way = Way(gateway, server)
        try:
            async with way.client() as client:
                way.script("x = 1; open('kept', 'w').write('kept')")
                first = await _ask(client)
            await gateway.stop()
            way.gateway = gateway = await start_gateway(server.base_url, tmp_path, "--door", "http", environ=_ENVIRON)
            async with way.client() as client:
                way.script("print('x' in globals(), open('kept').read())")
                later = await _ask(client, previous_response_id=first.id)
                assert later.output[0].container_id == first.output[0].container_id
                assert later.output[0].outputs[0].logs == "False kept\n"
        finally:
            await gateway.stop()


@pytest.mark.slow
@pytest.mark.parametrize("door", tuple(_ARGUMENTS))
async def test_with_several_workers_a_variable_is_there_on_every_turn(door: str, tmp_path: Path) -> None:
    """Whichever process a turn comes to, its code runs where the interpreter is; where that is gone, the model is
    told."""
    async with ChatServer() as server:
        arguments = (*_ARGUMENTS[door], "--workers", "3")
        gateway = await start_gateway(server.base_url, tmp_path, *arguments, environ=_ENVIRON)
        way = Way(gateway, server)

        async def turn(code: str, response: Any = None) -> Any:
            way.script(code)
            # Over a connection of its own: one connection of the HTTP door is one worker's.
            async with way.client() as client:
                return await _ask(client, **({"previous_response_id": response.id} if response else {}))

        try:
            response = await turn("turns = 0; open('kept', 'w').write('kept')")
            for number in range(1, 11):
                response = await turn("turns += 1; print(turns)", response)
                assert response.output[0].outputs[0].logs == f"{number}\n" and way.read[-1] == str(number)
            (sandbox,) = _sandboxes(tmp_path)
            os.kill(_parent(sandbox), signal.SIGKILL)
            async with asyncio.timeout(60):
                while _sandboxes(tmp_path):
                    await asyncio.sleep(0.01)
            response = await turn("turns = 0; print(open('kept').read())", response)
            assert response.output[0].outputs[0].logs == "kept\n"
            assert way.read[-1].startswith("[This is a new interpreter")
            for number in range(1, 4):
                response = await turn("turns += 1; print(turns)", response)
                assert response.output[0].outputs[0].logs == f"{number}\n"
        finally:
            status = await gateway.stop()
        assert status == 0, "\n".join(gateway.log[-30:])


@pytest.mark.slow
async def test_a_container_goes_from_machine_to_machine(
    tmp_path: Path, postgres: PostgresServer, seaweed: SeaweedServer
) -> None:
    """Two machines with one PostgreSQL and one bucket: files go along, the model is told of variables; the machine that
    the container came from may be killed."""
    settings = seaweed.settings()
    assert settings.key_id is not None and settings.secret is not None
    environ = {
        **_ENVIRON,
        "ANTIPHON_STATE__URL": await postgres.new_database(),
        "ANTIPHON_OWNER__KEY": OWNER_KEY,
        "ANTIPHON_SEALING__KEYS": json.dumps([SEALING_KEY]),
        "ANTIPHON_BLOBS__URL": str(settings.url),
        "ANTIPHON_BLOBS__ENDPOINT": str(settings.endpoint),
        "ANTIPHON_BLOBS__KEY_ID": settings.key_id.get_secret_value(),
        "ANTIPHON_BLOBS__SECRET": settings.secret.get_secret_value(),
    }
    made = "import os; os.makedirs('deep/er'); x = 1"
    write = "open('deep/er/caf\u00e9', 'w').write('kept'); open(b'no-\\xff', 'w').write('odd'); x"
    read = "print('x' in globals(), open('deep/er/caf\u00e9').read(), open(b'no-\\xff').read())"
    async with ChatServer() as server, AsyncExitStack() as stopping:
        ways = []
        for name in ("one", "other"):
            gateway = await start_gateway(server.base_url, tmp_path / name, "--door", "http", environ=environ)
            stopping.push_async_callback(gateway.stop)
            ways.append(Way(gateway, server))
        one, other = ways
        async with one.client() as here, other.client() as there:
            one.script(made, f"{write}; 1")
            first = await _ask(here)
            assert [call.status for call in first.output[:-1]] == ["completed", "completed"]
            other.script(read)
            second = await _ask(there, previous_response_id=first.id)
            assert second.output[0].container_id == first.output[0].container_id
            assert second.output[0].outputs[0].logs == "False kept odd\n"
            assert other.read[-1].startswith("[This is a new interpreter")
            files = {item.path: item async for item in here.containers.files.list(first.output[0].container_id)}
            got = await here.containers.files.content.retrieve(
                files["/mnt/data/deep/er/caf\u00e9"].id, container_id=first.output[0].container_id
            )
            assert await got.aread() == b"kept"
            other.script("open('deep/er/caf\u00e9', 'w').write('changed')")
            third = await _ask(there, previous_response_id=second.id)
            await other.gateway.stop(signal.SIGKILL)
            one.script(read)
            fourth = await _ask(here, previous_response_id=third.id)
            assert fourth.output[0].outputs[0].logs == "False changed odd\n"
            await here.containers.delete(first.output[0].container_id)


async def test_switched_off_it_is_a_400(tmp_path: Path) -> None:
    async with ChatServer() as server:
        gateway = await start_gateway(server.base_url, tmp_path, "--door", "http")
        try:
            async with Way(gateway, server).client() as client:
                with pytest.raises(openai.BadRequestError) as error:
                    await _ask(client)
            assert error.value.param == "tools[0].type" and error.value.code == "unsupported_tool"
        finally:
            await gateway.stop()
