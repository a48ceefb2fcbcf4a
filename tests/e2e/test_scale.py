"""Two replicas on one state, as on two machines: chains, background responses while one is killed, owners.

The larger runs are `scripts/lab scale`.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lab.scale.chains import chains
from lab.scale.early_refusals import EarlyRefusals
from lab.scale.failover import Run as Failover
from lab.scale.failover import failover, pair_of
from lab.scale.jobs import Run, jobs, jobs_settings
from lab.scale.model import model
from lab.scale.owners import OWNERS_SETTINGS, owners
from lab.scale.quota_plan import Plan, by_level, by_owner
from lab.scale.quotas import oracle, quotas
from lab.scale.replicas import Replicas, demo
from lab.scale.standby import WAYS
from lab.scale.states import State
from tests.support.postgres import PostgresServer, pooler_program

# The runs of `scripts/lab scale`, which is also run by hand.
pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.full),
        "postgres",
        pytest.param("pgbouncer", marks=pytest.mark.full),
    ]
)
async def state(request: pytest.FixtureRequest, folder: Path) -> State:
    """What both replicas share, whatever `--state` says."""
    if request.param == "sqlite":
        return State("sqlite", f"sqlite:{folder / 'state'}")
    server: PostgresServer = request.getfixturevalue("postgres")
    url = await server.new_database()
    if request.param == "postgres":
        return State("postgres", url)
    return State("pgbouncer", request.getfixturevalue("pgbouncer").url(url))


async def test_chains_alternate_between_replicas(state: State, folder: Path) -> None:
    async with demo(folder) as upstream, Replicas(state.url, upstream, folder, count=2) as replicas:
        report = await chains(replicas, chains=20, turns=3, clients=10)
    assert not report.wrong, report.table()


@pytest.mark.parametrize(
    "kills",
    [pytest.param(False, marks=pytest.mark.full), pytest.param(True, marks=(pytest.mark.slow, pytest.mark.long))],
)
async def test_background_responses_end_once_and_are_followed_anywhere(state: State, folder: Path, kills: bool) -> None:
    async with (
        model(pause=0.02) as made,
        Replicas(state.url, made.url, folder, count=2, settings=jobs_settings(lease=1.0)) as replicas,
    ):
        run = Run(replicas, state, made, jobs=24, words=20, cancels=1, lease=1.0, chance=random.Random(1))
        # What a busy machine makes of the time that a cancellation takes says nothing.
        run.replica_every, run.cancelled_within = 1.0 if kills else 0.0, 30.0
        report = await jobs(run)
    assert not report.wrong, report.table()


@pytest.mark.full
async def test_nothing_crosses_between_owners(state: State, folder: Path) -> None:
    async with (
        demo(folder) as upstream,
        Replicas(state.url, upstream, folder, count=2, settings=OWNERS_SETTINGS) as replicas,
    ):
        report = await owners(replicas)
    assert not report.wrong, report.table()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_a_standby_takes_the_place_of_a_primary_that_was_killed(folder: Path, way: str) -> None:
    if way == "pgbouncer" and pooler_program() is None:
        pytest.skip("pgbouncer is not installed")
    run = Failover(way, rounds=2, between=30, clients=6, chance=random.Random(1))
    settings = {"conversations": {"lease": 2}, "idempotency": {"lease": 2}}
    async with (
        pair_of(run) as (pair, url, lead),
        demo(folder) as upstream,
        Replicas(url, upstream, folder, count=2, settings=settings) as replicas,
    ):
        report = await failover(run, pair, replicas, lead)
    assert not report.wrong, report.table()


@pytest.mark.parametrize("plan", [by_owner(), by_level(1500)], ids=["by owner", "by level"])
async def test_quotas_hold_on_replicas(state: State, folder: Path, plan: Plan) -> None:
    chance = random.Random(1)
    early = EarlyRefusals(2)
    async with (
        oracle(chance, plan) as ledger,
        Replicas(state.url, ledger.url, folder, count=2, settings=plan.settings, environ=early.environ) as replicas,
    ):
        size: dict[str, Any] = {"requests": 1500, "clients": 8, "every": 0.0, "settled_within": 5.0}
        report = await quotas(replicas, state, ledger, folder, chance=chance, early=early, **size)
    assert not report.wrong, report.table()
