"""`antiphon try` as a process, against a running HTTP server with a scripted model server."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.chat_server import WaitGone, answer, chunk, event, json_answer, text_stream
from tests.support.commands import Command, run_command
from tests.support.http_door import OpenHttpDoor
from tests.support.postgres import free_port

_CALL = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f\x1b[2J", "arguments": '{"a": 1}'}}
_TOOL = json.dumps({"type": "function", "name": "f", "parameters": {"type": "object"}})


async def _try(processes: list[Command], door: OpenHttpDoor, *words: str, **environ: str) -> tuple[int, Command]:
    command = await run_command(processes, "try", "--url", door.base_url, *words, **environ)
    return await command.end(), command


async def test_the_text_on_one_stream_and_the_rest_on_the_other(processes: list[Command], door: OpenHttpDoor) -> None:
    thought = event(chunk({"reasoning_content": "Let me think."}))
    door.chat.script(json_answer({"data": [{"id": "first"}, {"id": "second"}]}))
    door.chat.script(answer(parts=[thought, *text_stream("Hello\x1b[2J", "\nyou")]))
    status, ran = await _try(processes, door, "--instructions", "Be short.", "hi")
    assert status == 0, ran.err
    assert ran.out == ["Hello\\x1b[2J", "you"]
    thinking, footer = ran.err
    assert thinking == "Let me think."
    response, model, tokens, more, seconds = footer.split(" · ")
    assert response.startswith("resp_") and (model, tokens) == ("first", "3 input tokens")
    assert more.startswith("2 output tokens") and "first token after" in seconds
    chat = door.chat.requests[-1].json
    assert chat["model"] == "first"
    assert [message["content"] for message in chat["messages"]] == ["Be short.", "hi"]

    # The next run continues the response.
    door.chat.script(answer(parts=text_stream("Again")))
    status, ran = await _try(processes, door, "--model", "demo-model", "--previous", response, "and")
    assert (status, ran.out) == (0, ["Again"])
    assert [message["role"] for message in door.chat.requests[-1].json["messages"]] == ["user", "assistant", "user"]


async def test_a_tool_call_is_one_line(processes: list[Command], door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event(chunk({"tool_calls": [_CALL]})), *text_stream(finish="tool_calls")]))
    status, ran = await _try(processes, door, "--model", "m", "--tool", _TOOL, "--tool", "no_tool", "hi")
    assert (status, ran.out) == (0, [])
    call, ignored, _ = ran.err
    assert call == '→ function_call  f\\x1b[2J {"a": 1}'
    assert ignored.startswith("ignored: ") and "no_tool" in ignored


@pytest.mark.parametrize("flag", ["-v", "--json"])
async def test_every_event(flag: str, processes: list[Command], door: OpenHttpDoor) -> None:
    status, ran = await _try(processes, door, "--model", "demo-model", flag, "hi")
    assert status == 0
    kinds = [json.loads(line)["type"] for line in ran.out] if flag == "--json" else [row.split()[1] for row in ran.out]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
    assert kinds.count("response.output_text.delta") == 2
    assert len(ran.err) == (0 if flag == "--json" else 1)


async def test_the_key_goes_to_the_gateway(processes: list[Command], door: OpenHttpDoor) -> None:
    words = ("--model", "m", "--key-env", "MY_KEY", "hi")
    status, ran = await _try(processes, door, *words)
    assert (status, ran.err) == (2, ["antiphon: --key-env: the variable MY_KEY is not set"])
    status, ran = await _try(processes, door, *words, MY_KEY="key-of-anna")
    assert status == 0
    (stored,) = door.store.records.values()
    async with aiohttp.ClientSession() as session:
        for key, found in (("key-of-anna", 200), ("another", 404)):
            sent = {"authorization": f"Bearer {key}"}
            async with session.get(f"{door.base_url}/responses/{stored.id}", headers=sent) as got:
                assert got.status == found


async def test_standard_input(door: OpenHttpDoor) -> None:
    for given, status, told in (
        (b"from a pipe\n", 0, b""),
        (b"", 2, b"antiphon: standard input has no text\n"),
        (b"\xff", 2, b"antiphon: standard input is not UTF-8 text\n"),
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "antiphon", "try", "--url", door.base_url, "--model", "m", "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(60):
            _, err = await process.communicate(given)
        assert process.returncode == status
        assert told in err and err.count(b"\n") == 1
    assert door.chat.requests[-1].json["messages"][-1]["content"] == "from a pipe\n"


# Failures


async def test_no_gateway(processes: list[Command]) -> None:
    port = free_port()
    ran = await run_command(processes, "try", "hi", ANTIPHON_LISTEN=f"0.0.0.0:{port}")
    assert await ran.end() == 1
    assert ran.err == [
        f"antiphon: no gateway answers at http://127.0.0.1:{port}/v1 (Connection refused); start one with "
        "'antiphon up --upstream URL', or name its address with --url"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--url", "127.0.0.1:8080"), "--url: must be a base URL, for example http://127.0.0.1:8080/v1"),
        (("--url", "http://h:1?x=1"), "--url: must be a base URL, for example http://127.0.0.1:8080/v1"),
        (("--tool", "{"), "--tool: is not JSON: "),
        (("--tool", "{}"), '--tool: the JSON object needs a "type"'),
        (("--config", "/nowhere.yaml"), "the settings file cannot be read (FileNotFoundError)"),
    ],
)
async def test_wrong_words(words: tuple[str, ...], said: str, processes: list[Command]) -> None:
    ran = await run_command(processes, "try", *words, "hi")
    assert await ran.end() == 2
    (line,) = ran.err
    assert line.startswith(f"antiphon: {said}")


async def test_errors_of_the_gateway_are_one_line(processes: list[Command], door: OpenHttpDoor) -> None:
    broken = {"error": {"message": "no\x1b[2J room", "type": "x", "param": None, "code": None}}
    for words, script, said in (
        (("--previous", "resp_none"), None, "status 400: Previous response with id 'resp_none' not found."),
        ((), json_answer(broken, 404), "status 404: no"),
        ((), answer(parts=[event("Hel")]), "ended without a finish_reason"),
        ((), answer(parts=[event("Hel"), event({"error": {"message": "over\x1bheated"}})]), "over"),
    ):
        if script is not None:
            door.chat.script(script)
        status, ran = await _try(processes, door, "--model", "m", *words, "hi")
        assert status == 1
        (line,) = ran.err
        assert line.startswith("antiphon: ") and said in line and "\x1b" not in line, line


async def test_a_server_that_is_no_gateway(processes: list[Command]) -> None:
    async def respond(request: web.Request) -> web.StreamResponse:
        if request.path == "/v1/responses":
            return web.json_response({"object": "response"})
        if request.path == "/cut/responses":
            return web.Response(text='data: {"type": "response.created"}\n\n', content_type="text/event-stream")
        return web.Response(status=404, text="<h1>Not found</h1>")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", respond)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        origin = "http://{}:{}".format(*runner.addresses[0])
        for path, words, said in (
            ("", ("--model", "m"), "answers with application/json, not with an event stream"),
            ("/cut", ("--model", "m"), "the stream ended before the response was complete"),
            ("/x", ("--model", "m"), "answers with status 404 and may not be a gateway; name the gateway's address"),
            ("/x", (), "with --model the command does not need the list of models"),
        ):
            ran = await run_command(processes, "try", "--url", origin + path, *words, "hi")
            assert await ran.end() == 1
            (line,) = ran.err
            assert said in line
    finally:
        await runner.cleanup()


async def test_ctrl_c_ends_the_request(processes: list[Command], door: OpenHttpDoor) -> None:
    door.chat.script(answer(parts=[event("Hel"), WaitGone()]))
    ran = await run_command(processes, "try", "--url", door.base_url, "--model", "m", "-v", "hi")
    await ran.line("   ")
    call = await door.chat.received()
    assert await ran.end(signal.SIGINT) == 130
    assert ran.err == []
    async with asyncio.timeout(30):
        await call.gone.wait()


@pytest.mark.parametrize("colors", [True, False])
async def test_colours_on_a_terminal(colors: bool, door: OpenHttpDoor) -> None:
    thought = event(chunk({"reasoning_content": "Hmm."}))
    door.chat.script(answer(parts=[thought, *text_stream("Hello")]))
    ours, theirs = pty.openpty()
    environ = {"NO_COLOR": "" if colors else "1", "TERM": "xterm"}
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "antiphon", "try", "--url", door.base_url, "--model", "m", "hi"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **environ},
        )
    finally:
        os.close(theirs)
    try:
        reading = asyncio.ensure_future(asyncio.to_thread(_read_all, ours))
        async with asyncio.timeout(60):
            assert await process.wait() == 0
            shown = await reading
    finally:
        os.close(ours)
    thinking, text, footer = shown.decode().splitlines()
    assert text == "Hello"
    assert thinking == ("\x1b[2mHmm.\x1b[0m" if colors else "Hmm.")
    assert footer.startswith("\x1b[2mresp_" if colors else "resp_")


def _read_all(terminal: int) -> bytes:
    """The output until the last process closes the terminal, which Linux reports as an error."""
    parts: list[Any] = []
    try:
        while part := os.read(terminal, 65536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)
