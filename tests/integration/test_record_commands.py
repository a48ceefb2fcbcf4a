"""`antiphon record` and `antiphon replay` as processes, and behind a gateway."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from antiphon.recordings.file import read_file
from tests.support.chat_server import ChatServer, Mark, WaitGone, answer, json_answer, text_stream
from tests.support.commands import Command, run_command
from tests.support.gateway import post
from tests.support.waiting import until

pytestmark = pytest.mark.slow

KEY = "sk-a-key-that-is-secret-1234"
ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {"city": {}}}}
REQUESTS: list[dict[str, Any]] = [
    {"input": "Name a river."},
    {"input": "Please think, then count to 20.", "stream": True},
    {"input": "What is the weather in Paris and Rome?", "tools": [TOOL], "stream": True},
    {"input": "What is the weather in Paris?", "tools": [TOOL]},
    {"input": "error 429"},
    {"input": "break", "stream": True},
    {"input": "Name a river."},
]


def _plain(body: bytes) -> str:
    """The answer without its random ids and its times: each id becomes its number in the answer."""
    ids: dict[str, str] = {}
    text = re.sub(r'"(created_at|completed_at)": ?[0-9.]+', r'"\1":0', body.decode())
    # What an error repeats has the address of the upstream.
    return re.sub(
        r"\b(resp|msg|rs|fc|req)_[A-Za-z0-9]{8,}",
        lambda found: ids.setdefault(found[0], f"{found[1]}_{len(ids)}"),
        text,
    )


async def _talk(url: str) -> list[tuple[int, str]]:
    """The gateway's answers to all requests, and to a second turn."""
    said = [await post(url + "/responses", {"model": "demo", **request}) for request in REQUESTS]
    last = {"model": "demo", "input": "What did I say before?", "previous_response_id": json.loads(said[0].body)["id"]}
    said.append(await post(url + "/responses", last))
    return [(one.status, _plain(one.body)) for one in said]


async def test_a_gateway_gives_the_same_answers_on_the_replay(processes: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    any_port = ("--listen", "127.0.0.1:0")
    demo = await run_command(processes, "demo-upstream", *any_port)
    recorder = await run_command(
        processes, "record", "--to", str(path), "--upstream", await demo.line("ready: "), *any_port
    )

    async def gateway(upstream: str, data: str) -> str:
        settings = ("--upstream", upstream, "--data", str(tmp_path / data))
        return await (await run_command(processes, "serve", *settings, *any_port)).line("ready: ")

    first = await _talk(await gateway(await recorder.line("ready: "), "first"))
    assert await recorder.end(signal.SIGINT) == 0
    assert await demo.end(signal.SIGTERM) == 0
    assert [status for status, _ in first] == [200, 200, 200, 200, 429, 200, 200, 200]
    assert "response.failed" in first[5][1] and "Name a river" in first[7][1]

    replay = await run_command(processes, "replay", str(path), *any_port)
    url = await replay.line("ready: ")
    second = await _talk(await gateway(url, "second"))
    assert second == first
    assert not any("no recorded answer" in line for line in replay.err if "POST" in line), replay.err

    # Without the gateway, each answer has the recorded bytes.
    entries = [entry for entry in read_file(path) if entry.method == "POST" and not entry.cut]
    assert len(entries) >= 7
    async with aiohttp.ClientSession() as session:
        for entry in entries:
            origin = url.removesuffix("/v1")
            async with session.request(entry.method, origin + entry.path, data=entry.request) as got:
                assert (got.status, await got.read()) == (entry.status, entry.body)
    assert await replay.end(signal.SIGINT) == 0


async def test_ctrl_c_ends_a_stream_and_leaves_whole_entries(processes: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    async with ChatServer() as chat:
        arguments = ("record", "--to", str(path), "--upstream", chat.base_url, "--listen", "127.0.0.1:0", "--json")
        recorder = await run_command(processes, *arguments, "--key-env", "SOME_KEY", SOME_KEY=KEY)
        await until(lambda: recorder.out)
        ready = json.loads(recorder.out[0])
        assert ready.items() >= {"upstream": chat.base_url, "file": str(path), "entries": 0}.items()
        sent = asyncio.Event()
        chat.script(json_answer({"said": KEY}), answer(200, [], [*text_stream("Hel")[:1], Mark(sent), WaitGone()]))
        url = f"{ready['ready']}/chat/completions"
        assert KEY in (await post(url, ASKED)).body.decode()
        hanging = asyncio.create_task(post(url, ASKED))
        await asyncio.wait_for(sent.wait(), 60)
        assert await recorder.end(signal.SIGINT) == 0
        await asyncio.gather(hanging, return_exceptions=True)
        assert chat.requests[0].header("authorization") == f"Bearer {KEY}"
    assert len(read_file(path)) == 1 and KEY not in path.read_text()
    assert "not recorded" in recorder.err[1] and recorder.err[-1] == f"recorded 1 exchange to {path}"
    assert "\x1b" not in "".join(recorder.err) and KEY not in "".join((*recorder.err, *recorder.out))

    # The same command refuses the file, and adds to it with --append.
    again = await run_command(processes, *arguments)
    assert await again.end() == 2 and f"--to: {path} exists" in again.err[0]
    more = await run_command(processes, *arguments, "--append")
    await until(lambda: more.out)
    assert json.loads(more.out[0])["entries"] == 1
    assert await more.end(signal.SIGTERM) == 0 and len(read_file(path)) == 1


async def test_what_cannot_start_leaves_no_file(processes: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    async with ChatServer() as chat:
        taken = chat.base_url.removeprefix("http://").removesuffix("/v1")
        for arguments, said in (
            (("--listen", taken), "cannot listen on"),
            (("--listen", "unix:/x"), "is not HOST:PORT"),
            (("--upstream", "http://user:pass-word-1@h/v1"), "must not contain a user or a password"),
            (("--upstream", "ftp://h"), "must be an http:// or https:// URL"),
            (("--key-env", "NOT_SET_ANYWHERE"), "the variable NOT_SET_ANYWHERE is not set"),
            (("--key-env", "SOME_KEY"), "has characters that a key cannot have"),
        ):
            command = await run_command(processes, "record", "--to", str(path), *arguments, SOME_KEY="a\nb")
            assert await command.end() == 2 and said in command.err[0], command.err
            assert "pass-word" not in command.err[0] and not path.exists()


async def test_a_damaged_recording_is_named(processes: list[Command], tmp_path: Path) -> None:
    path = tmp_path / "agent.jsonl"
    path.write_bytes(b'{"status": 200}\n')
    command = await run_command(processes, "replay", str(path))
    assert await command.end() == 2
    assert command.err == [
        f"antiphon: {path}: 1 of 1 entries are damaged: entry 1 (line 1) has no sha256. Record them again, or delete "
        "their lines."
    ]
