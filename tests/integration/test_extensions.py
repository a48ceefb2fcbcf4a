"""Tools and profiles of other packages: what is installed beside Antiphon is used, what is wrong with it is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import antiphon
from antiphon.app.build import build
from antiphon.app.extensions import extensions, known_profiles, make_extension_tools
from antiphon.app.model_routing import make_routes
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.errors import ConfigError
from tests.support.chat_server import ChatServer, answer, chunk, completion, event, json_answer, text_stream
from tests.support.installed_package import install, installed, write_info

DICE: dict[str, Any] = {"type": "dice", "sides": 20}
CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "dice__roll", "arguments": "{}"}}
LAST_WORDS = "You rolled it."


@asynccontextmanager
async def gateway(folder: Path, chat: ChatServer) -> AsyncIterator[str]:
    """A process that finds what is installed in `folder`; its base URL."""
    settings = load_settings(
        {"data": folder / "data", "upstream": {"url": chat.base_url, "profile": "acme"}, "owner": {"source": "single"}}
    )
    app = await build(settings, door="http")
    door = HttpDoor(app.context)
    try:
        yield f"http://{await door.start('127.0.0.1:0')}/v1"
    finally:
        await door.aclose()
        await app.aclose()


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


async def test_a_tool_of_another_package_runs_in_the_stream(tmp_path: Path, packages: Path) -> None:
    install(packages)
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        with installed(packages):
            async with gateway(tmp_path, chat) as url:
                chat.script(
                    answer(parts=[event(chunk({"tool_calls": [CALL]})), *text_stream(finish="tool_calls")]),
                    answer(parts=text_stream(LAST_WORDS)),
                )
                body = {
                    "model": "m",
                    "input": "Roll.",
                    "tools": [DICE],
                    "tool_choice": {"type": "dice"},
                    "stream": True,
                }
                async with session.post(f"{url}/responses", json=body) as got:
                    assert got.status == 200 and "antiphon-ignored" not in got.headers, await got.text()
                    events = [json.loads(line[6:]) for line in (await got.text()).splitlines() if line[:7] == "data: {"]
                call, message = events[-1]["response"]["output"]
                assert (call["type"], call["server_label"], call["name"]) == ("mcp_call", "dice", "roll")
                assert 1 <= int(call["output"]) <= 20 and message["content"][0]["text"] == LAST_WORDS
                assert "response.mcp_call.completed" in [one["type"] for one in events]
                first, second = (request.json for request in chat.requests)
                assert first["tools"][0]["function"]["description"] == "Roll a die of 20 sides."
                assert second["messages"][-1] == {"role": "tool", "tool_call_id": "c1", "content": call["output"]}
                # The profile of the same package: it asks for no usage in streams.
                assert "stream_options" not in first

                # A further turn shows the model what was rolled.
                chat.script(json_answer(completion("Again?")))
                body = {"model": "m", "input": "What was it?", "previous_response_id": events[-1]["response"]["id"]}
                async with session.post(f"{url}/responses", json=body) as got:
                    assert got.status == 200
                assert call["output"] in json.dumps(chat.requests[-1].json["messages"])

                async with session.post(
                    f"{url}/responses", json={"model": "m", "input": "x", "tools": [{"type": "dice", "sides": 1}]}
                ) as got:
                    assert (got.status, (await got.json())["error"]["param"]) == (400, "tools[0].sides")

                async with session.get(f"{url}/antiphon/capabilities?model=m") as got:
                    shown = await got.json()
                assert shown["profile"] == "acme" and shown["tools"]["tools.dice"]["support"] == "handled"


async def test_without_the_package_its_tool_is_left_out_and_named(tmp_path: Path) -> None:
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        settings = load_settings({"data": tmp_path / "data", "upstream": {"url": chat.base_url}})
        app = await build(settings, door="http")
        door = HttpDoor(app.context)
        try:
            url = f"http://{await door.start('127.0.0.1:0')}/v1/responses"
            async with session.post(url, json={"model": "m", "input": "x", "tools": [DICE]}) as got:
                assert (got.status, got.headers["antiphon-ignored"]) == (200, "tools.dice")
        finally:
            await door.aclose()
            await app.aclose()


def test_a_profile_of_another_package_is_chosen_by_its_hosts(packages: Path) -> None:
    install(packages)
    with installed(packages):
        routes = make_routes(load_settings({"upstream": {"url": "https://api.acme.example/v1"}}))
        assert routes.default.profile.name == "acme" and "acme" in known_profiles()
    assert "acme" not in known_profiles()


@pytest.mark.parametrize(
    ("group", "name", "code", "said"),
    [
        ("tools", "web_search", "made = dict", "tool 'web_search' of wrong 0.1 has a name that is taken by Antiphon"),
        ("tools", "function", "made = dict", "has a name that is taken by Antiphon itself"),
        ("profiles", "openai", "made = None", "profile 'openai' of wrong 0.1 has a name that is taken"),
        ("tools", "dice", "import nowhere_at_all", "cannot be loaded (wrong_code:made): ModuleNotFoundError"),
        ("tools", "dice", "", "cannot be loaded (wrong_code:made): AttributeError"),
        ("tools", "dice", "raise SystemError('broken')", "cannot be loaded (wrong_code:made): SystemError: broken"),
        ("tools", "dice", "made = 5", "must be a class or function that makes the tool, not 5"),
        ("tools", "dice", "made = lambda: 1 / 0", "tool 'dice' of wrong 0.1 cannot be made: ZeroDivisionError"),
        ("tools", "dice", "class made: types = frozenset({'mcp'})", "must have the types {'dice'}, and has {'mcp'}"),
        ("profiles", "acme", "made = dict()", "must be an UpstreamProfile called 'acme', not {}"),
    ],
)
def test_what_is_wrong_with_a_package_is_said_at_the_start(
    packages: Path, group: str, name: str, code: str, said: str
) -> None:
    (packages / "wrong_code.py").write_text(code + "\n")
    write_info(packages, "wrong", "0.1", {f"antiphon.{group}": {name: "wrong_code:made"}})
    with installed(packages), pytest.raises(ConfigError) as raised:
        list(make_extension_tools())
    assert said in str(raised.value)


def test_two_packages_with_one_name_are_refused(packages: Path) -> None:
    install(packages)
    write_info(packages, "other-dice", "2.0", {"antiphon.tools": {"dice": "antiphon_dice:Dice"}})
    with installed(packages), pytest.raises(ConfigError, match="uninstall one of them") as raised:
        extensions()
    assert "antiphon-dice 1.0" in str(raised.value) and "other-dice 2.0" in str(raised.value)


def _command(packages: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(packages), str(Path(antiphon.__file__).parent.parent)))
    return subprocess.run(
        [sys.executable, "-m", "antiphon", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_doctor_lists_what_is_installed(tmp_path: Path, packages: Path) -> None:
    install(packages)
    nowhere = ("--upstream", "http://127.0.0.1:9/v1", "--data", str(tmp_path / "data"), "--door", "http")
    told = _command(packages, "doctor", *nowhere)
    assert "installed beside Antiphon: tool 'dice' of antiphon-dice 1.0" in told.stdout, told
    assert "installed beside Antiphon: profile 'acme' of antiphon-dice 1.0" in told.stdout


def test_a_package_that_is_broken_ends_the_start(tmp_path: Path, packages: Path) -> None:
    write_info(packages, "wrong", "0.1", {"antiphon.tools": {"dice": "nowhere_at_all:Dice"}})
    told = _command(packages, "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    assert told.returncode != 0 and told.stdout == ""
    assert "tool 'dice' of wrong 0.1 cannot be loaded (nowhere_at_all:Dice)" in told.stderr
