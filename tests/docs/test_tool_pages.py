"""The Python examples of the pages about tools and caches run as written, against a gateway with a scripted model."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.app.build import build
from antiphon.config.settings import load_settings
from antiphon.doors.http.server import HttpDoor
from tests.docs.blocks import block
from tests.docs.running import WRITTEN, printed
from tests.support.chat_server import Answer, ChatServer, completion, json_answer
from tests.support.sandbox_trial import trial

# A quick test holds each block to its mark; this one runs the programs.
pytestmark = pytest.mark.full


@asynccontextmanager
async def _gateway(folder: Path, chat: ChatServer, **settings: Any) -> AsyncIterator[str]:
    """The HTTP server in front of the scripted model; its base URL."""
    loaded = load_settings(
        {"data": folder / "data", "upstream": {"url": chat.base_url, "profile": "generic"}, **settings}
    )
    app = await build(loaded, door="http")
    door = HttpDoor(app.context)
    try:
        yield f"http://{await door.start('127.0.0.1:0')}/v1"
    finally:
        await door.aclose()
        await app.aclose()


async def _printed(code: str, url: str, folder: Path) -> list[str]:
    """The lines that the example prints."""
    assert WRITTEN in code
    program = folder / "example.py"
    program.write_text(code.replace(WRITTEN, url))
    return (await printed([sys.executable, str(program)], folder, os.environ)).splitlines()


def _turn(tool: str, arguments: object, words: str) -> Sequence[Answer]:
    """The model calls the tool, and then answers with the words."""
    call = {"id": "c1", "type": "function", "function": {"name": tool, "arguments": json.dumps(arguments)}}
    return json_answer(completion("", content=None, tool_calls=[call])), json_answer(completion(words))


async def test_vector_stores(tmp_path: Path) -> None:
    words = "The notice period is three months."
    async with ChatServer() as chat, _gateway(tmp_path, chat) as url:
        chat.script(*_turn("file_search", {"queries": ["notice period"]}, words))
        lines = await _printed(block("docs/how-to/vector-stores.md", "vector-stores-sdk"), url, tmp_path)
        assert lines == [
            "handbook.txt The notice period is three months. Holidays are 30 days a year.",
            words,
        ]
        shown = chat.requests[-1].json["messages"][-1]
        assert shown["role"] == "tool" and "three months" in shown["content"]


async def test_code_interpreter(tmp_path: Path) -> None:
    reason = trial().reason
    if reason and not os.environ.get("CI"):
        pytest.skip(f"there is no local sandbox on this machine: {reason}")
    words, code = "It is 338350.", "sum(n * n for n in range(1, 101))"
    sandbox = {"code_interpreter": {"sandbox": "local"}}
    async with ChatServer() as chat, _gateway(tmp_path, chat, **sandbox) as url:
        chat.script(*_turn("code_interpreter", {"code": code}, words))
        lines = await _printed(block("docs/how-to/code-interpreter.md", "code-interpreter-sdk"), url, tmp_path)
        assert [line for line in lines if line] == [code, "338350", words]


async def test_prompt_cache(tmp_path: Path) -> None:
    async with ChatServer() as chat, _gateway(tmp_path, chat) as url:
        chat.script(*[json_answer(completion("The Rhine."))] * 2)
        lines = await _printed(block("docs/how-to/prompt-cache.md", "prompt-cache-sdk"), url, tmp_path)
        assert lines == ["cache_miss input_changed"]
