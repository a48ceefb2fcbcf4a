"""A rolling upgrade that no client notices, over a schema that first gains and then loses something; background
responses that one build queues and another one runs.

The larger run is `scripts/lab rollout --upgrade`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lab.bench.variants import Process
from lab.rollout.builds import Build, make_builds
from lab.rollout.course import Load, roll, upgrade
from lab.rollout.replicas import Plan
from lab.rollout.report import table
from lab.rollout.shared import bucket_settings, machines
from tests.support.postgres import PostgresServer
from tests.support.seaweed import SeaweedServer

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900), pytest.mark.sources]

_SECONDS = 60.0


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Build, Build]:
    return make_builds(tmp_path_factory.mktemp("builds"))


@pytest.fixture
async def upstream(folder: Path) -> AsyncIterator[str]:
    process = await Process.start(folder / "upstream.log", sys.executable, "-m", "lab.rollout.upstream")
    yield process.ready
    await process.stop()


async def test_a_rolling_upgrade(
    builds: tuple[Build, Build, Build], upstream: str, postgres: PostgresServer, seaweed: SeaweedServer, folder: Path
) -> None:
    url = await postgres.new_database(empty=True)
    shared = machines("postgres", url, bucket_settings(seaweed.endpoint, "upgrade"))
    # The drain is long enough for any machine: what is shown is that nothing needs to be cut.
    plan = Plan("http", replicas=2, notice=5.0, drain=120.0, shared=shared)
    load = Load(streams=4, others=1, seconds=2.0)
    result = await roll(
        plan, load, upstream, folder / "run", warm=1.0, rest=0.2, course=upgrade(*builds), build=builds[0]
    )
    await postgres.drop_database(url)
    assert result.good, table("upgrade", result)
    assert "Install the newer version again" in result.notes[-1]


async def test_jobs_of_one_build_run_on_another(
    builds: tuple[Build, Build, Build], upstream: str, postgres: PostgresServer, folder: Path
) -> None:
    old, first, second = builds
    url = await postgres.new_database(empty=True)
    doors = _Doors(url, upstream, folder)
    async with aiohttp.ClientSession() as session:

        async def queue(door: str) -> str:
            asking = {"model": "demo", "input": "count to 2", "background": True}
            async with session.post(f"{door}/responses", json=asking) as got:
                made = await got.json()
                assert (got.status, made.get("status")) == (200, "queued"), made
                return str(made["id"])

        async def status(door: str, response_id: str) -> str:
            async with session.get(f"{door}/responses/{response_id}") as got:
                assert got.status == 200, await got.text()
                return str((await got.json())["status"])

        async def completed(door: str, response_id: str) -> None:
            async with asyncio.timeout(_SECONDS):
                while (seen := await status(door, response_id)) != "completed":
                    assert seen in ("queued", "in_progress"), seen
                    await asyncio.sleep(0.05)

        for asked, runs in ((old, first), (first, old)):
            async with doors.open(asked, runs=False) as door, doors.open(runs, runs=True):
                await completed(door, await queue(door))
        async with doors.open(old, runs=False) as door:
            waits = await queue(door)
        async with doors.open(second, runs=True) as door:
            await completed(door, waits)

        # What it queues no older build reads: that one leaves it, runs its own, and a newer one takes it.
        async with doors.open(second, runs=False) as newer:
            left = await queue(newer)
            async with doors.open(first, runs=True) as older:
                await completed(older, await queue(older))
                assert await status(older, left) == "queued"
            async with doors.open(second, runs=True) as door:
                await completed(door, left)
    await postgres.drop_database(url)


class _Doors:
    """Processes of builds on one database, each with a data folder of its own."""

    def __init__(self, url: str, upstream: str, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._settings: dict[str, Any] = {
            "state": {"url": url},
            "upstream": {"url": upstream, "auth": "none", "profile": "generic"},
            "timeouts": {"check": 0},
            "owner": {"key": "upgrade-owner-key-0123456789"},
            "sealing": {"keys": ["upgrade-sealing-key-0123456"]},
        }

    @asynccontextmanager
    async def open(self, build: Build, *, runs: bool) -> AsyncIterator[str]:
        """Its URL. `runs`: whether it runs background responses; else it only queues them."""
        self._count += 1
        place = self._folder / f"{build.name.replace(' ', '-')}-{self._count}"
        file = place.with_suffix(".json")
        file.write_text(json.dumps({**self._settings, "background": {"workers": 4 if runs else 0}}))
        command = (*build.command, "serve", "--config", str(file), "--data", str(place), "--listen", "127.0.0.1:0")
        process = await Process.start(place.with_suffix(".log"), *command)
        try:
            yield process.ready
        finally:
            await process.stop()
