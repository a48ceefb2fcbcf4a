"""Tools and profiles of other packages: what is installed beside Antiphon is used, what is wrong with it is said."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import aiohttp
import pytest

import antiphon
from antiphon import extension
from antiphon.app.build import build
from antiphon.app.extensions import extensions, known_profiles, make_extension_tools, with_extension_settings
from antiphon.app.upstreams import make_routes
from antiphon.config.settings import Settings, load_settings
from antiphon.doors.http.server import HttpDoor
from antiphon.errors import ConfigError
from tests.support.chat_server import ChatServer, answer, chunk, completion, event, json_answer, text_stream
from tests.support.installed_package import EXAMPLE, install, installed, write_info

DICE: dict[str, Any] = {"type": "dice", "sides": 20}
CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "dice__roll", "arguments": "{}"}}
LAST_WORDS = "You rolled it."


@asynccontextmanager
async def gateway(folder: Path, chat: ChatServer, **sections: Any) -> AsyncIterator[str]:
    """A process that finds what is installed in `folder`; its base URL."""
    upstream = {"url": chat.base_url, "profile": "acme"}
    settings = load_settings({"data": folder / "data", "upstream": upstream, "owner": {"source": "single"}, **sections})
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


async def test_a_tool_gets_its_settings(tmp_path: Path, packages: Path) -> None:
    install(packages)
    async with ChatServer() as chat, aiohttp.ClientSession() as session:
        with installed(packages):
            async with gateway(tmp_path, chat, extensions={"dice": {"sides": 12}}) as url:
                chat.script(json_answer(completion("Hi")))
                body = {"model": "m", "input": "x", "tools": [{"type": "dice"}]}
                async with session.post(f"{url}/responses", json=body) as got:
                    assert got.status == 200
                assert chat.requests[0].json["tools"][0]["function"]["description"] == "Roll a die of 12 sides."


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"dice": {"sidez": 4}},
            "dice.sidez is not a setting of tool 'dice' of antiphon-dice 1.0; did you mean extensions.dice.sides?",
        ),
        ({"dice": {"sides": 1}}, "extensions.dice.sides: must be at least 2"),
        ({"dice": {"sides": "many"}}, "extensions.dice.sides: must be a whole number"),
        ({"dice": 4}, "extensions.dice must be a mapping of settings (name: value)"),
        ({"dise": {}}, "extensions.dise: no tool of this name is installed; did you mean extensions.dice?"),
        ({"plain": {"a": 1}}, "extensions.plain: tool 'plain' of plain 0.1 has no settings"),
        ({"dice": {"sides": 1, "sidez": 2}, "plain": {}}, "3 settings are wrong:"),
    ],
)
def test_wrong_settings_of_a_tool_are_refused(packages: Path, given: dict[str, Any], said: str) -> None:
    install(packages)
    (packages / "plain_code.py").write_text("class Plain: types = frozenset({'plain'})\n")
    write_info(packages, "plain", "0.1", {"antiphon.tools": {"plain": "plain_code:Plain"}})
    with installed(packages), pytest.raises(ConfigError) as raised:
        with_extension_settings(load_settings({"extensions": given}))
    assert said in str(raised.value)


def test_a_secret_of_a_tool_is_hidden_like_any_other(packages: Path) -> None:
    install(packages)
    with installed(packages):
        environ = {"ANTIPHON_EXTENSIONS__DICE__SEED": "hunter2hunter2", "ANTIPHON_EXTENSIONS__DICE__SIDES": "20"}
        settings = with_extension_settings(load_settings({"extensions": {"dice": {"sides": 8}}}, environ))
        assert settings.redacted()["extensions"] == {"dice": {"sides": 8, "seed": "**********"}}
        assert "hunter2hunter2" in settings.secrets() and "hunter2" not in repr(settings)
        assert with_extension_settings(settings) == settings


STRICT = """
from pydantic import BaseModel, Field, SecretStr, field_validator, model_validator


class Inner(BaseModel):
    key: SecretStr | None = None

    @field_validator("key")
    @classmethod
    def _check(cls, value):
        raise ValueError("not " + value.get_secret_value()[:6])


class Settings(BaseModel):
    key: SecretStr | None = None
    inner: Inner | None = None
    name: str = ""
    number: int = 0
    custom: str = ""
    code: str = Field("", alias="the-code")

    @field_validator("key")
    @classmethod
    def _check_key(cls, value):
        raise ValueError("unusable: " + value.get_secret_value()[::-1])

    @field_validator("name")
    @classmethod
    def _check_name(cls, value):
        raise ValueError(f"the name {value} is too {value!r}")

    @field_validator("number")
    @classmethod
    def _check_number(cls, value):
        raise RuntimeError(f"no {value}, hunter2hunter2")

    @field_validator("custom")
    @classmethod
    def _check_custom(cls, value):
        from pydantic_core import PydanticCustomError
        raise PydanticCustomError("less_than", "hunter2hunter2")

    @field_validator("code")
    @classmethod
    def _check_code(cls, value):
        raise KeyError(value)


class Strict:
    types = frozenset({"strict"})
    settings_model = Settings

    def __init__(self, settings):
        pass
"""
FUSSY = """
from pydantic import BaseModel, SecretStr


class Settings(BaseModel):
    key: SecretStr | None = None


class Fussy:
    types = frozenset({"fussy"})
    settings_model = Settings

    def __init__(self, settings):
        raise ValueError(f"cannot log in with {settings.key.get_secret_value()}")
"""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"key": "hunter2hunter2"}, "extensions.strict.key: the tool refuses this value"),
        ({"inner": {"key": "hunter2hunter2"}}, "extensions.strict.inner.key: the tool refuses this value"),
        ({"name": "hunter2hunter2"}, "extensions.strict.name: the name … is too '…'"),
        ({"name": "ab1"}, "extensions.strict.name: the name … is too '…'"),
        (
            {"number": 7},
            "extensions.strict.number: the validator of tool 'strict' of strict 0.1 raised RuntimeError; correct the "
            "value or the package",
        ),
        ({"the-code": "hunter2hunter2"}, "extensions.strict.the-code: the validator of tool 'strict' of strict 0.1 "),
        (
            {"custom": "x"},
            "extensions.strict.custom: has a value that its package cannot use; the package's documentation "
            "lists the allowed values",
        ),
    ],
)
def test_a_validators_error_holds_no_value(packages: Path, given: dict[str, Any], said: str) -> None:
    (packages / "strict_code.py").write_text(STRICT)
    write_info(packages, "strict", "0.1", {"antiphon.tools": {"strict": "strict_code:Strict"}})
    with installed(packages), pytest.raises(ConfigError) as raised:
        with_extension_settings(load_settings({"extensions": {"strict": given}}))
    told = str(raised.value)
    assert told.startswith(said) and "\n" not in told
    assert not [leak for leak in ("hunter", "2retnuh", "ab1") if leak in told]


def test_a_tool_that_cannot_be_made_tells_no_secret(packages: Path) -> None:
    (packages / "fussy_code.py").write_text(FUSSY)
    write_info(packages, "fussy", "0.1", {"antiphon.tools": {"fussy": "fussy_code:Fussy"}})
    settings = load_settings({"extensions": {"fussy": {"key": "hunter2hunter2"}}})
    with installed(packages), pytest.raises(ConfigError) as raised:
        list(make_extension_tools(settings))
    assert str(raised.value) == (
        "tool 'fussy' of fussy 0.1 cannot be created: ValueError: cannot log in with [redacted]"
    )


PROMISED = {
    "ApiError": None,
    "CallKind": None,
    "HostedCall": "call_id item_id target arguments tool owner response_id",
    "HostedFunction": "kind name description parameters namespace approval deferred read_only",
    "HostedTool": "index type declaration earlier searchable",
    "InvalidRequest": None,
    "PreparedTool": "tool functions items fields",
    "ServerTool": None,
    "Source": None,
    "ToolFailed": None,
    "ToolResult": "call_id output fields failed sources images",
    "UpstreamProfile": None,
    "on_models": None,
    "read_arguments": None,
    "read_declared": None,
}
"""The names of `antiphon.extension`, and the first fields of those with fields. Nothing may be taken out of it."""


def test_the_promised_names_and_fields_are_there() -> None:
    assert set(extension.__all__) >= PROMISED.keys()
    for name, promised in PROMISED.items():
        one = getattr(extension, name)
        if promised is not None:
            assert [field.name for field in fields(one)][: len(promised.split())] == promised.split(), name


def test_the_example_imports_nothing_else_of_antiphon() -> None:
    tree = ast.parse((EXAMPLE / "antiphon_dice.py").read_text())
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert {name for name in found if name and name.split(".")[0] == "antiphon"} == {"antiphon.extension"}


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
        ("tools", "web_search", "made = dict", "tool 'web_search' of wrong 0.1 has a name that Antiphon itself uses"),
        ("tools", "function", "made = dict", "has a name that Antiphon itself uses"),
        ("profiles", "openai", "made = None", "profile 'openai' of wrong 0.1 has a name that Antiphon itself uses"),
        ("tools", "dice", "import nowhere_at_all", "cannot be loaded (wrong_code:made): ModuleNotFoundError"),
        ("tools", "dice", "", "cannot be loaded (wrong_code:made): AttributeError"),
        ("tools", "dice", "raise SystemError('broken')", "cannot be loaded (wrong_code:made): SystemError: broken"),
        ("tools", "dice", "made = 5", "must be a class or function that makes the tool, not 5"),
        ("tools", "dice", "made = lambda: 1 / 0", "tool 'dice' of wrong 0.1 cannot be created: ZeroDivisionError"),
        (
            "tools",
            "dice",
            "class made: settings_model = 5",
            "settings_model of tool 'dice' of wrong 0.1 must be a pydantic",
        ),
        (
            "tools",
            "dice",
            "class made: types = frozenset({'mcp'})",
            ("must have the types {'dice'}, but has the types {'mcp'}"),
        ),
        ("profiles", "acme", "made = dict()", "must be an UpstreamProfile called 'acme', not {}"),
    ],
)
def test_what_is_wrong_with_a_package_is_said_at_the_start(
    packages: Path, group: str, name: str, code: str, said: str
) -> None:
    (packages / "wrong_code.py").write_text(code + "\n")
    write_info(packages, "wrong", "0.1", {f"antiphon.{group}": {name: "wrong_code:made"}})
    with installed(packages), pytest.raises(ConfigError) as raised:
        list(make_extension_tools(Settings()))
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
    assert "installed in addition to Antiphon: tool 'dice' of antiphon-dice 1.0" in told.stdout, told
    assert "installed in addition to Antiphon: profile 'acme' of antiphon-dice 1.0" in told.stdout


def test_a_package_that_is_broken_ends_the_start(tmp_path: Path, packages: Path) -> None:
    write_info(packages, "wrong", "0.1", {"antiphon.tools": {"dice": "nowhere_at_all:Dice"}})
    told = _command(packages, "serve", "--data", str(tmp_path / "data"), "--listen", "127.0.0.1:0")
    assert told.returncode != 0 and told.stdout == ""
    assert "tool 'dice' of wrong 0.1 cannot be loaded (nowhere_at_all:Dice)" in told.stderr
