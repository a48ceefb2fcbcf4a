"""Runs one turn of the Codex CLI (`codex exec --json`) with a private home and work folder.

Lives here too: the functions with which scenarios script the chat server and read its requests. Not here: the prompts
for Codex (`codex_scenarios.py`, `codex_threads.py`), starting the gateway (`run.py`).

Invariant: no turn sees files or threads of another `Codex`.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import antiphon
from lab.clients.processes import Installed
from tests.support.envoy_binary import envoy_environ
from tests.support.strict_upstream import StrictUpstream

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEklEQVR4nGP4z8CAFWEXHbQSACj/P8Fu7N9hAAAAAElFTkSuQmCC"
)
"""A red PNG image of 8 by 8 pixels."""


def call(name: str, arguments: Any, number: int = 1) -> dict[str, Any]:
    """A tool call of the model, for a scripted answer."""
    return {"name": name, "arguments": arguments, "id": f"call_{number}"}


def tool_names(chat: dict[str, Any]) -> list[str]:
    """The names of the functions in a chat request."""
    return [tool["function"]["name"] for tool in chat["tools"]]


def tool_texts(chat: dict[str, Any]) -> list[str]:
    """The texts of the tool messages in a chat request."""
    return [message["content"] for message in chat["messages"] if message["role"] == "tool"]


def images(chat: dict[str, Any]) -> list[bytes]:
    """The images in a chat request."""
    parts = [
        part for message in chat["messages"] if isinstance(message["content"], list) for part in message["content"]
    ]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.removeprefix("data:image/png;base64,")) for url in urls]


class Codex:
    """The Codex CLI in a private home and work folder, and the chat server behind the gateway."""

    def __init__(self, installed: Installed, upstream: StrictUpstream, name: str) -> None:
        self._installed = installed
        self._upstream = upstream
        self.python = installed.python()
        self.home = installed.folder / "codex" / installed.mode / name
        shutil.rmtree(self.home, ignore_errors=True)
        self.work = self.home / "work"
        self.work.mkdir(parents=True)
        self.events: list[dict[str, Any]] = []
        self.output = ""

    async def turn(
        self, *arguments: str, model: str = "strict", retries: int = 0, config: str = "", provider: str = "http"
    ) -> None:
        """Run one `codex exec`. Afterwards `events` and `output` belong to this turn.

        `provider`: `http` and `socket` are defined by this test, and `openai` is Codex's built-in provider.
        """
        self._configure(model, retries, config, provider)
        self.output = await self._installed.run(*self._command(arguments), home=self.home, work=self.work)
        self.events = [json.loads(line) for line in self.output.splitlines() if line.startswith('{"type"')]

    async def turn_by_antiphon(self, *arguments: str) -> None:
        """Run one turn with `antiphon run`, which starts a gateway and configures Codex. Afterwards `events` and
        `output` belong to this turn."""
        flags = ("--auth", "inject", "--api-key-env", "UPSTREAM_KEY", "--mode", self._installed.mode)
        command = [sys.executable, "-m", "antiphon", "run", "codex", "--upstream", self._upstream.base_url, *flags]
        command += ["--listen", "127.0.0.1:0", "--data", str(self.home / "data"), "--model", "strict", "--"]
        self.output = await self._installed.run(
            *(*command, *self._command(arguments)[1:]),
            home=self.home,
            work=self.work,
            environ={
                **envoy_environ(),
                "UPSTREAM_KEY": self._upstream.key,
                "PYTHONPATH": str(Path(antiphon.__file__).parents[1]),
            },
        )
        self.events = [json.loads(line) for line in self.output.splitlines() if line.startswith('{"type"')]

    async def leave(self, *arguments: str) -> None:
        """Run one `codex exec`, and kill it while the chat server has not finished its answer."""
        self._configure("strict", 0, "", "http")
        turn = asyncio.ensure_future(self._installed.run(*self._command(arguments), home=self.home, work=self.work))
        try:
            assert await self._upstream.held(), "no answer is open"
        finally:
            turn.cancel()
            await asyncio.wait({turn})

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        codex = str(self._installed.folder / "node_modules" / ".bin" / "codex")
        flags = ("exec", "--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox")
        return [codex, *flags, *arguments]

    def _configure(self, model: str, retries: int, config: str, provider: str) -> None:
        settings = self.home / ".codex" / "config.toml"
        settings.parent.mkdir(exist_ok=True)
        base_url = self._installed.base_url
        top = f'model = "{model}"\nmodel_reasoning_summary = "auto"\n'
        if provider == "openai":
            settings.write_text(f'{top}openai_base_url = "{base_url}"\n{config}\n')
            return
        settings.write_text(
            f'{top}model_provider = "gw"\n{config}\n'
            f'[model_providers.gw]\nname = "gw"\nbase_url = "{base_url}"\nenv_key = "GATEWAY_KEY"\n'
            f'wire_api = "responses"\nrequest_max_retries = {retries}\nstream_max_retries = {retries}\n'
            f"supports_websockets = {json.dumps(provider == 'socket')}\nsupports_standalone_web_search = true\n"
        )

    async def was_left(self) -> bool:
        """Whether the gateway closed the chat server's open answer. Waits for this for a while."""
        return await self._upstream.left()

    def script(self, *answers: dict[str, Any]) -> None:
        """Set the next answers of the chat server."""
        self._upstream.script(answers)

    @property
    def thread(self) -> str:
        """The id of the last turn's thread."""
        return str(next(event["thread_id"] for event in self.events if event["type"] == "thread.started"))

    def rollout(self) -> Path:
        """The file in which Codex stores its only thread."""
        (found,) = self.home.glob(".codex/sessions/**/rollout-*.jsonl")
        return found

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The chat requests that the server received since the last `script`."""
        return self._upstream.requests

    def items(self, kind: str) -> list[dict[str, Any]]:
        """The finished items of one kind in Codex's output."""
        done = [event["item"] for event in self.events if event["type"] == "item.completed"]
        return [item for item in done if item["type"] == kind]

    def said(self) -> list[str]:
        return [item["text"] for item in self.items("agent_message")]

    def kinds(self) -> list[str]:
        return [event["type"] for event in self.events]
