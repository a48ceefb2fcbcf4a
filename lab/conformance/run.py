"""`scripts/lab conformance`: runs Open Responses' compliance suite against Antiphon's servers, or against any other
server.

Lives here: starting the servers in front of the demo chat server, flags, the table, the exit status. Not here: the
scenarios (`scenarios.py`).

Invariant: the exit status is 0 only if no scenario failed. The table lists a missing feature as missing, never as
passed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from pathlib import Path

from aiohttp import web

from antiphon.commands.demo_upstream import make_app
from lab.conformance.client import Result, Server, run_all
from tests.support.gateway import start_gateway

DOORS: dict[str, tuple[str, tuple[str, ...]]] = {
    "relay": ("up", ("--mode", "relay")),
    "drive": ("up", ("--mode", "drive")),
    "http": ("serve", ()),
}
"""Antiphon's servers: the command that starts each, and its flags. `relay` and `drive` run behind a real Envoy."""

_MARKS = {"pass": "pass", "fail": "FAIL", "not yet": "not yet"}


@asynccontextmanager
async def serving(app: web.Application) -> AsyncIterator[str]:
    """Start a chat server. Yields its base URL."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def open_doors(names: Sequence[str], model: web.Application | None = None) -> AsyncIterator[dict[str, Server]]:
    """Start Antiphon's servers with these names. `model`: the chat server behind them, by default the demo server."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(serving(model or make_app(pause=0.0)))
        servers = {}
        for name in names:
            command, flags = DOORS[name]
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="antiphon-conformance-"))
            gateway = await start_gateway(upstream, Path(folder), *flags, command=command)
            stack.push_async_callback(gateway.stop)
            servers[name] = Server(gateway.base_url, "demo", headers=(("authorization", "Bearer conformance"),))
        yield servers


def table(results: dict[str, list[Result]]) -> str:
    """The table with a row for each scenario and a column for each server. Below it, each reason appears once."""
    names = list(results)
    rows = [["scenario", *names]]
    reasons: dict[str, list[str]] = {}
    for row in zip(*results.values(), strict=True):
        rows.append([row[0].scenario, *(_MARKS[result.verdict] for result in row)])
        for name, result in zip(names, row, strict=True):
            if result.reason:
                reasons.setdefault(f"{result.scenario}: {_MARKS[result.verdict]}: {result.reason}", []).append(name)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines.append("")
    lines += [f"{reason} [{', '.join(where)}]" for reason, where in reasons.items()]
    lines.append("")
    for name, found in results.items():
        count = {verdict: sum(result.verdict == verdict for result in found) for verdict in _MARKS}
        lines.append(
            f"{name}: {count['pass']} of {len(found)} pass, {count['fail']} fail, {count['not yet']} not yet there"
        )
    return "\n".join(lines)


async def _run(arguments: argparse.Namespace) -> dict[str, list[Result]]:
    if arguments.url is not None:
        headers = [("authorization", f"Bearer {arguments.key}")]
        for header in arguments.header:
            name, _, value = header.partition(":")
            headers.append((name.strip(), value.strip()))
        server = Server(arguments.url.rstrip("/"), arguments.model, False, tuple(headers))
        return {"server": await run_all(server, official=arguments.official)}
    async with open_doors(arguments.door or list(DOORS)) as servers:
        return {name: await run_all(server, official=arguments.official) for name, server in servers.items()}


Running = Callable[[argparse.Namespace], Coroutine[None, None, dict[str, list[Result]]]]


def main(arguments: Sequence[str] | None = None, running: Running | None = None) -> int:
    """Run the scenarios (with `running`) and print the table. The exit status is 1 if a scenario failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab conformance",
        description="The 17 scenarios of Open Responses' compliance suite, against our doors or any server.",
    )
    parser.add_argument("--url", help="base URL of a running server, with /v1 (default: start our own doors)")
    parser.add_argument("--model", default="demo", help="the model to ask for (with --url)")
    parser.add_argument("--key", default="anything", help="bearer token (with --url)")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="NAME:VALUE",
        help="a further header (with --url); antiphon-dialect:openresponses where the model of an Antiphon reasons",
    )
    parser.add_argument("--door", action="append", choices=DOORS, help="only this door of ours (may be repeated)")
    parser.add_argument("--official", action="store_true", help="only what the official suite checks")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    given = parser.parse_args(arguments)
    results = asyncio.run((running or _run)(given))
    print(table(results))
    if given.json is not None:
        given.json.write_text(json.dumps({name: [asdict(one) for one in found] for name, found in results.items()}))
    return int(any(result.verdict == "fail" for found in results.values() for result in found))


if __name__ == "__main__":
    sys.exit(main())
