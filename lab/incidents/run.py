"""`scripts/lab incidents`: causes five incidents, and measures when an operator can see the cause of each.

Lives here: the run, and the expected signs. Not here: the faults (`scenes.py`), reading the signs (`signs.py`).

A gateway first works for a while. Then one fault begins, and all other parts continue to work. Every second the run
scrapes the metrics and reads the log. A metric, a log line and an alert must identify the cause, and no other alert may
fire.

Invariant: a run ends by itself. Each missing sign is a line of its report and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from lab.incidents.scenes import SCENES, Job, Place, Scene, everyday, holding
from lab.incidents.signs import SCRAPE_SECONDS, Lines, Sample, fired, moved, promtool, read_sample, shown
from tests.support.chat_server import ChatServer
from tests.support.gateway import start_gateway
from tests.support.mcp_server import open_mcp_server
from tests.support.strict_upstream import StrictUpstream

_DISK = "64m"
_PAUSE = 0.3
_TOOL_SECONDS = 2.0
_OWNER_REQUESTS = 8
_MOST_MOVED = 8


@dataclass
class Seen:
    """One incident: one sample of the metrics per second, and the number of samples before the fault."""

    samples: list[Sample] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    broken_at: int = 0
    lines: Lines = field(default_factory=Lines)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Mount a small separate disk at this folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_DISK},mode=0700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@asynccontextmanager
async def _place(scene: Scene, folder: Path) -> AsyncIterator[tuple[Place, str]]:
    """Start the gateway of a scene. Yields it with the URL of its metrics."""
    async with AsyncExitStack() as stack:
        blue = StrictUpstream()
        await blue.start()
        stack.push_async_callback(blue.stop)
        green = await stack.enter_async_context(ChatServer())
        held = await stack.enter_async_context(ChatServer())
        held.default = holding
        mcp = await stack.enter_async_context(open_mcp_server())
        upstreams = {"blue": blue.base_url, "green": green.base_url, "holding": held.base_url}
        settings = {
            "upstreams": {
                name: {"url": url, "api_key": "ours", "profile": "generic"} for name, url in upstreams.items()
            },
            "models": [{"match": name, "upstream": name} for name in upstreams],
            "fetch": {"allow_private": ["127.0.0.1"]},
            "mcp": {"connectors": {"connector_dice": {"url": mcp.url}}},
            "tools": {"seconds": _TOOL_SECONDS},
            "limits": {"owner_requests": _OWNER_REQUESTS},
        }
        data = folder / "data"
        data.mkdir(mode=0o700)
        if scene.disk:
            stack.enter_context(_disk(data))
        config = folder / "settings.json"
        config.write_text(json.dumps(settings))
        environ = {"ANTIPHON_METRICS__LISTEN": "127.0.0.1:0"}
        gateway = await start_gateway(None, data, "--config", str(config), environ=environ)
        stack.push_async_callback(gateway.stop)
        listens = json.loads(await gateway.log_line('"metrics"'))["listen"]
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=60), connector=aiohttp.TCPConnector(limit=0, force_close=True)
            )
        )
        yield Place(gateway, green, session, data), f"http://{listens}/metrics"


async def _again(job: Job, place: Place) -> None:
    while True:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            await job(place)
        await asyncio.sleep(_PAUSE)


async def _see(scene: Scene, folder: Path, calm: int, scrapes: int) -> Seen:
    """Let the gateway work, cause the fault, and sample metrics and log the whole time."""
    seen = Seen(broken_at=calm)
    async with _place(scene, folder) as (place, metrics):
        jobs = [asyncio.ensure_future(_again(job, place)) for job in (everyday, *scene.jobs)]
        broken, read = 0.0, 0
        try:
            for number in range(calm + scrapes):
                if number == calm:
                    scene.breaks(place)
                    place.broken = True
                    broken, read = time.monotonic(), len(place.gateway.log)
                await asyncio.sleep(1.0)
                async with place.session.get(metrics) as got:
                    seen.samples.append(read_sample(await got.text()))
                seen.times.append(time.monotonic() - broken)
                if place.broken:
                    for line in place.gateway.log[read:]:
                        seen.lines.add(line.replace(str(folder), "…"), seen.times[-1])
                    read = len(place.gateway.log)
        finally:
            for job in jobs:
                job.cancel()
            await asyncio.wait(jobs)
    return seen


def _tell(scene: Scene, seen: Seen, folder: Path) -> list[str]:
    """Print the signs of an incident. Returns the missing ones."""
    wrong = []
    at = seen.broken_at
    before = scene.number(seen.samples[at - 1])
    rose = [number for number in range(at, len(seen.samples)) if scene.number(seen.samples[number]) > before]
    if rose:
        after = scene.number(seen.samples[-1])
        print(f"  panel: {scene.panel}")
        print(f"  metric after {seen.times[rose[0]]:.0f} s: {scene.series}: {before:g} -> {after:g}")
    else:
        wrong.append(f"{scene.name}: {scene.series} did not move")
    others = moved(seen.samples, at)
    for series, was, now in others[:_MOST_MOVED]:
        print(f"    moved too: {series}: {was:g} -> {now:g}")
    if len(others) > _MOST_MOVED:
        print(f"    … and {len(others) - _MOST_MOVED} more")

    found = seen.lines.first(scene.line, scene.least)
    if found is None:
        wrong.append(f"{scene.name}: no line with {dict(scene.line)}")
    else:
        line, seconds, count = found
        wrong += [f"{scene.name}: its line has no {name}" for name in scene.names if not line.get(name)]
        print(f"  line after {seconds:.0f} s, {count} times: {shown(line)}")
    for told in seen.lines.told():
        if found is None or shown(found[0]) not in told:
            print(f"    line {told}")
    return wrong + _tell_alerts(scene, seen, folder)


def _tell_alerts(scene: Scene, seen: Seen, folder: Path) -> list[str]:
    if promtool() is None:
        print("  alert: not tried: promtool is not installed")
        return []
    wrong = []
    firing = fired(seen.samples, folder)
    first: dict[tuple[tuple[str, str], ...], int] = {}
    for number, alerts in enumerate(firing):
        for alert in alerts:
            first.setdefault(alert, number)
    for alert, number in sorted(first.items(), key=lambda one: one[1]):
        labels = dict(alert)
        when = (number - seen.broken_at + 1) * SCRAPE_SECONDS
        named = " ".join(f"{name}={value}" for name, value in labels.items() if name != "alertname")
        print(f"  alert after {when // 60} min {when % 60:02} s: {labels['alertname']} {named}".rstrip())
        if not set(scene.alert) <= set(alert) and labels["alertname"] not in scene.also:
            wrong.append(f"{scene.name}: {dict(alert)} fires too")
    if not any(set(scene.alert) <= set(alert) for alert in first):
        wrong.append(f"{scene.name}: {dict(scene.alert)} does not fire")
    return wrong


def _run(scene: Scene, calm: int, scrapes: int) -> list[str]:
    print(f"\n{scene.name}")
    if scene.disk and os.geteuid() != 0:
        print("  skipped: a separate small disk needs root")
        return []
    with tempfile.TemporaryDirectory(prefix="antiphon-incident-") as folder:
        try:
            return _tell(scene, asyncio.run(_see(scene, Path(folder), calm, scrapes)), Path(folder))
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            if not scene.disk:
                raise
            print(f"  skipped: no separate small disk can be made here ({error})")
            return []


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if no sign is missing."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab incidents", description="Five incidents, as an operator sees them."
    )
    parser.add_argument("--calm", type=int, default=6, help="seconds in which all is well (default 6)")
    parser.add_argument("--scrapes", type=int, default=45, help="seconds of each incident (default 45)")
    parser.add_argument("--only", default="", help="only incidents whose names hold this")
    given = parser.parse_args(arguments)
    # The log lines of the tool servers do not matter for this run.
    logging.disable(logging.WARNING)
    print(f"{datetime.date.today()}: metrics and lines in seconds as they came; alerts as with a scrape each 15 s")
    wrong: list[str] = []
    for scene in SCENES:
        if given.only in scene.name:
            wrong += _run(scene, given.calm, given.scrapes)
    print()
    for one in wrong:
        print(f"WRONG  {one}")
    print("incidents: every culprit is named" if not wrong else f"incidents: {len(wrong)} signs are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
