"""`scripts/clients`: real clients against Antiphon in Envoy, in front of a strict chat server; a table at the end.

Lives here: starting everything, running each client's scenarios, the Codex CLI's among them, the table. Not here: the
scenarios of the libraries (`python_clients.py`, `*.mjs`).

Invariant: a scenario passes only when the client saw what it should and the chat server refused nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from tests.support.gateway import start_gateway
from tests.support.strict_upstream import StrictUpstream

__all__ = ["main"]

HERE = Path(__file__).parent
_SECONDS = 120.0
_PATCH = "*** Begin Patch\n*** Add File: patched.txt\n+by apply_patch\n*** End Patch"
Result = dict[str, Any]


class Clients:
    """The installed clients and the gateway they talk to."""

    def __init__(self, folder: Path, base_url: str, upstream: StrictUpstream) -> None:
        self._folder = folder
        self._upstream = upstream
        self._environ = {
            "PATH": f"{folder}/py/bin:{os.environ['PATH']}",
            "HOME": str(folder),
            "BASE_URL": base_url,
            "GATEWAY_KEY": "k",
        }
        self._base_url = base_url
        self._work = folder / "work"

    async def python(self, name: str) -> list[Result]:
        return await self._lines(str(self._folder / "py" / "bin" / "python"), str(HERE / "python_clients.py"), name)

    async def node(self, name: str) -> list[Result]:
        # Modules are found beside the script, so the scripts stand where the modules are.
        for script in HERE.glob("*.mjs"):
            (self._folder / script.name).write_text(script.read_text())
        node = self._folder / "py" / "bin" / "node"
        return await self._lines(str(node), str(self._folder / "run.mjs"), f"./{name}.mjs")

    async def codex(self, _: str) -> list[Result]:
        results = []
        for name, model, prompt, check in (
            ("text", "strict", "hi", self._said_hello),
            (
                "shell",
                "strict",
                'use the tool exec_command {"cmd": "echo made-by-codex > proof.txt"}',
                self._made_proof,
            ),
            ("patch", "gpt-5.5", f"use the tool apply_patch {json.dumps({'input': _PATCH})}", self._patched),
        ):
            self._work.mkdir(exist_ok=True)
            for left in self._work.iterdir():
                left.unlink()
            self._write_config(model)
            output = await self._run(
                str(self._folder / "node_modules" / ".bin" / "codex"),
                *("exec", "--skip-git-repo-check", "--json", "--dangerously-bypass-approvals-and-sandbox", prompt),
            )
            ok = check(output)
            results.append({"scenario": name, "ok": ok, **({} if ok else {"why": output[-600:]})})
        return results

    def _write_config(self, model: str) -> None:
        home = self._folder / ".codex"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'model = "{model}"\nmodel_provider = "gw"\nmodel_reasoning_summary = "auto"\n'
            f'[model_providers.gw]\nname = "gw"\nbase_url = "{self._base_url}"\nenv_key = "GATEWAY_KEY"\n'
            'wire_api = "responses"\nrequest_max_retries = 0\nstream_max_retries = 0\n'
        )

    @staticmethod
    def _said_hello(output: str) -> bool:
        return "Hello from the model." in output and "Let me think." in output

    def _made_proof(self, output: str) -> bool:
        proof = self._work / "proof.txt"
        return proof.exists() and proof.read_text() == "made-by-codex\n" and "The tool said:" in output

    def _patched(self, output: str) -> bool:
        patched = self._work / "patched.txt"
        return patched.exists() and patched.read_text() == "by apply_patch\n" and "The tool said:" in output

    async def _lines(self, *command: str) -> list[Result]:
        output = await self._run(*command)
        found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        return found or [{"scenario": "start", "ok": False, "why": output[-600:]}]

    async def _run(self, *command: str) -> str:
        self._work.mkdir(exist_ok=True)
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environ,
            cwd=self._work,
        )
        try:
            async with asyncio.timeout(_SECONDS):
                output, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            output, _ = await process.communicate()
        return output.decode("utf-8", "replace")


CLIENTS: dict[str, str] = {
    "openai_py": "python",
    "agents": "python",
    "pydantic_ai": "python",
    "langchain": "python",
    "openai_node": "node",
    "ai_sdk": "node",
    "codex": "codex",
}


async def _run_all(folder: Path, names: list[str], mode: str) -> int:
    upstream = StrictUpstream()
    await upstream.start()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="antiphon-clients-") as data:
        gateway = await start_gateway(upstream.base_url, Path(data), "--mode", mode)
        try:
            clients = Clients(folder, gateway.base_url, upstream)
            for name in names:
                run: Callable[[str], Awaitable[list[Result]]] = getattr(clients, CLIENTS[name])
                upstream.problems.clear()
                for result in await run(name):
                    failed += not result["ok"]
                    print(f"{'ok    ' if result['ok'] else 'FAILED'}  {name:12} {result['scenario']}", flush=True)
                    if not result["ok"]:
                        print("        " + str(result.get("why", "")).replace("\n", "\n        "))
                for problem in upstream.problems:
                    failed += 1
                    print(f"FAILED  {name:12} the chat server refused: {problem}")
        finally:
            await gateway.stop()
            await upstream.stop()
    print("clients: all good" if not failed else f"clients: {failed} failed")
    return 1 if failed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them; the exit status is 0 when all passed."""
    parser = argparse.ArgumentParser(prog="scripts/clients", description="Real clients, end to end through Envoy.")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(CLIENTS)} (default: all)")
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="relay", choices=("relay", "drive"))
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    return asyncio.run(_run_all(given.folder.absolute(), given.names or list(CLIENTS), given.mode))


if __name__ == "__main__":
    sys.exit(main())
