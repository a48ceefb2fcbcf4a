"""`scripts/lab clients`: tests real clients with Antiphon in Envoy in front of a strict chat server, and prints a
table.

Lives here: starting the servers, running each client's scenarios, the table. Not here: the scenarios of the libraries
(`scenarios_*.py`, `*.mjs`) and of the Codex CLI (`codex_scenarios.py`).

Invariant: a scenario passes only if the client got the expected result and the chat server refused nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.clients.codex_scenarios import run_codex
from lab.clients.processes import Installed, Result
from lab.clients.tool_servers import ToolServers
from tests.support.gateway import start_gateway
from tests.support.strict_upstream import StrictUpstream

HERE = Path(__file__).parent
# The client's name on the command line, its interpreter, and the file with its scenarios.
CLIENTS: dict[str, tuple[str, str]] = {
    "openai_py": ("python", "openai"),
    # The previous major version of OpenAI's SDK, and the packages that require it.
    "openai_py2": ("older", "openai"),
    "instructor": ("older", "instructor"),
    "agent_fw": ("older", "agent_framework"),
    "openai_state": ("python", "openai_state"),
    "agents_py": ("python", "agents"),
    "pydantic_ai": ("python", "pydantic_ai"),
    "langchain": ("python", "langchain"),
    "tools_py": ("python", "tools"),
    "openai_node": ("node", "openai_node"),
    "agents_node": ("node", "agents_node"),
    "tools_node": ("node", "tools_node"),
    "ai_sdk": ("node", "ai_sdk"),
    "ai_sdk_open": ("node", "ai_sdk_open"),
    "codex": ("codex", ""),
}
MODES = ("relay", "drive")

# In these scenarios a client sends content that another server encrypted, which strict mode refuses.
SEALED_ELSEWHERE = frozenset({"compacted_elsewhere", "sealed_elsewhere", "everything_at_once", "foreign_reasoning"})


async def _run_one(installed: Installed, upstream: StrictUpstream, name: str) -> list[Result]:
    kind, scenarios = CLIENTS[name]
    if kind == "codex":
        return await run_codex(installed, upstream)
    if kind == "python":
        output = await installed.run(installed.python(), str(HERE / "python_clients.py"), scenarios)
    elif kind == "older":
        output = await installed.run(installed.python("older"), str(HERE / "python_clients.py"), scenarios)
    else:
        # Python and Node search modules next to the script, so the scripts are copied next to the installed modules.
        for script in HERE.glob("*.mjs"):
            (installed.folder / script.name).write_text(script.read_text())
        output = await installed.run(installed.node, str(installed.folder / "run.mjs"), f"./{scenarios}.mjs")
    found = [json.loads(line) for line in output.splitlines() if line.startswith('{"scenario"')]
    return found or [{"scenario": "start", "ok": False, "why": output[-1500:]}]


@dataclass
class Count:
    """The numbers of passed and failed scenarios of a client. A refusal by the chat server counts as a failure."""

    passed: int = 0
    failed: int = 0


async def _run_mode(folder: Path, names: list[str], mode: str, counts: dict[str, Count], *, strict: bool) -> None:
    upstream = StrictUpstream(key="of-the-gateway")
    await upstream.start()
    servers = ToolServers(folder)
    await servers.start()
    with tempfile.TemporaryDirectory(prefix="antiphon-clients-") as data:
        # The gateway has its own key for the upstream, as background responses need. No client's key may reach the chat
        # server.
        environ = {
            "ANTIPHON_UPSTREAM__AUTH": "inject",
            "ANTIPHON_UPSTREAM__API_KEY": upstream.key,
            "ANTIPHON_CODE_INTERPRETER__SANDBOX": "local",
            "ANTIPHON_STRICT": str(strict),
            **servers.environ,
        }
        gateway = await start_gateway(upstream.base_url, Path(data), "--mode", mode, environ=environ)
        installed = Installed(folder, gateway.base_url, upstream.base_url.removesuffix("/v1"), mode, servers.mcp_url)
        try:
            for name in names:
                upstream.problems.clear()
                upstream.script()
                count = counts[name]
                for result in await _run_one(installed, upstream, name):
                    if strict and result["scenario"] in SEALED_ELSEWHERE:
                        continue
                    count.passed += result["ok"]
                    count.failed += not result["ok"]
                    verdict = "ok    " if result["ok"] else "FAILED"
                    seconds = result.get("seconds", 0.0)
                    print(f"{verdict}  {mode:5}  {seconds:5.1f} s  {name:12} {result['scenario']}", flush=True)
                    if not result["ok"]:
                        print("        " + str(result.get("why", "")).replace("\n", "\n        "))
                for problem in upstream.problems:
                    count.failed += 1
                    print(f"FAILED  {mode:5}  {name:12} the chat server refused: {problem}")
        finally:
            await gateway.stop()
            await servers.stop()
            await upstream.stop()


async def _run_all(
    folder: Path, names: list[str], modes: Sequence[str], told: Path | None = None, *, strict: bool = False
) -> int:
    began = time.monotonic()
    counts = {name: Count() for name in names}
    for mode in modes:
        await _run_mode(folder, names, mode, counts, strict=strict)
    passed = sum(count.passed for count in counts.values())
    failed = sum(count.failed for count in counts.values())
    print(f"clients: {time.monotonic() - began:.0f} s, {' and '.join(modes)}\n{passed} passed, {failed} failed")
    if told is not None:
        told.write_text(json.dumps({name: asdict(count) for name, count in counts.items()}))
    return 1 if failed or not passed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if all scenarios passed."""
    parser = argparse.ArgumentParser(prog="scripts/lab clients", description="Real clients, end to end through Envoy.")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(CLIENTS)} (default: all)")
    parser.add_argument("--folder", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--mode", choices=(*MODES, "both"), default="both", help="who calls the model (default: both)")
    parser.add_argument(
        "--strict", action="store_true", help="refuse unknown fields: a scenario fails if its client sends one"
    )
    parser.add_argument("--json", type=Path, help="a file for how many went well, by client")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    modes = MODES if given.mode == "both" else (given.mode,)
    return asyncio.run(
        _run_all(given.folder.absolute(), given.names or list(CLIENTS), modes, given.json, strict=given.strict)
    )


if __name__ == "__main__":
    sys.exit(main())
