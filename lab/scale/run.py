"""`scripts/lab scale`: selects the run, the state and the size, and prints the tables and the verdict.

Lives here: the command line, and the servers that every run needs. Not here: the runs.

Invariant: a run ends by itself and stops everything that it started. The exit status is 0 if the report has no failure.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lab.scale.chains import chains
from lab.scale.clock import CLOCK_SETTINGS, clock, fake_clocks
from lab.scale.early_refusals import EarlyRefusals
from lab.scale.failover import Run as Failover
from lab.scale.failover import failover, pair_of
from lab.scale.faults import faults, faults_of
from lab.scale.hole import hole
from lab.scale.jobs import Run as Jobs
from lab.scale.jobs import jobs, jobs_settings
from lab.scale.kills import Run as Kills
from lab.scale.kills import kills
from lab.scale.model import model
from lab.scale.owners import OWNERS_SETTINGS, owners
from lab.scale.quota_plan import by_level, by_owner
from lab.scale.quotas import oracle, quotas
from lab.scale.replicas import Replicas, demo
from lab.scale.report import Report
from lab.scale.standby import WAYS
from lab.scale.states import KINDS, State, opened

# The leases in seconds. After this time, replicas can use what a killed process held.
_LEASES: dict[str, Any] = {"conversations": {"lease": 5}, "idempotency": {"lease": 5}}


@asynccontextmanager
async def _service(
    given: argparse.Namespace, folder: Path, settings: dict[str, Any] | None = None
) -> AsyncIterator[tuple[Replicas, State]]:
    """Start replicas on the selected state, with the demo's chat server as the upstream."""
    async with (
        opened(given.state, folder) as state,
        demo(folder) as upstream,
        Replicas(state.url, upstream, folder, count=given.replicas, settings=settings) as replicas,
    ):
        yield replicas, state


async def _chains(given: argparse.Namespace, folder: Path) -> Report:
    async with _service(given, folder) as (replicas, _):
        return await chains(replicas, chains=given.chains, turns=given.turns, clients=given.clients)


async def _kills(given: argparse.Namespace, folder: Path) -> Report:
    async with _service(given, folder, _LEASES) as (replicas, state):
        run = Kills(replicas, state, given.turns, given.length, given.clients, random.Random(given.seed))
        run.replica_every, run.state_every = given.replica_every, given.state_every
        return await kills(run)


async def _jobs(given: argparse.Namespace, folder: Path) -> Report:
    settings = {**_LEASES, **jobs_settings(given.lease)}
    async with (
        model(given.pause) as made,
        opened(given.state, folder) as state,
        Replicas(state.url, made.url, folder, count=given.replicas, settings=settings) as replicas,
    ):
        chance = random.Random(given.seed)
        run = Jobs(replicas, state, made, given.jobs, given.words, given.cancels, given.lease, chance)
        run.replica_every = given.replica_every
        return await jobs(run)


async def _owners(given: argparse.Namespace, folder: Path) -> Report:
    async with _service(given, folder, OWNERS_SETTINGS) as (replicas, _):
        return await owners(replicas)


async def _faults(given: argparse.Namespace, folder: Path) -> Report:
    async with opened(given.state, folder) as state, demo(folder) as upstream:
        place = state.pooler or state.server
        if place is None:
            raise SystemExit("faults: --state must be postgres or pgbouncer: the run does not break other servers")
        async with hole(place.port) as way:
            url = state.url.replace(f":{place.port}/", f":{way.port}/")
            async with Replicas(url, upstream, folder, count=given.replicas) as replicas:
                done = faults_of(state, way, frozen=given.frozen, down=given.down)
                return await faults(replicas, done, clients=given.clients, margin=given.margin)


async def _failover(given: argparse.Namespace, folder: Path) -> Report:
    chance = random.Random(given.seed)
    run = Failover(given.way, given.rounds, given.between, given.clients, chance, behind=given.behind)
    async with (
        pair_of(run) as (pair, url, lead),
        demo(folder) as upstream,
        Replicas(url, upstream, folder, count=given.replicas, settings=_LEASES) as replicas,
    ):
        return await failover(run, pair, replicas, lead)


async def _quotas(given: argparse.Namespace, folder: Path) -> Report:
    chance = random.Random(given.seed)
    plan, early = by_level(given.requests) if given.levels == "all" else by_owner(), EarlyRefusals(given.replicas)
    more = {"count": given.replicas, "settings": plan.settings, "environ": early.environ, "door": given.door}
    async with (
        oracle(chance, plan) as ledger,
        opened(given.state, folder) as state,
        Replicas(state.url, ledger.url, folder, **more) as replicas,
    ):
        size = {"requests": given.requests, "clients": given.clients, "every": given.replica_every, "early": early}
        return await quotas(replicas, state, ledger, folder, chance=chance, **size)


async def _clock(given: argparse.Namespace, folder: Path) -> Report:
    minutes = dict(zip(range(given.replicas), (-given.minutes, 0.0, given.minutes), strict=False))
    async with (
        model(given.pause) as made,
        opened(given.state, folder) as state,
        Replicas(
            state.url,
            made.url,
            folder,
            count=given.replicas,
            settings=CLOCK_SETTINGS,
            environ=fake_clocks(minutes),
        ) as replicas,
    ):
        return await clock(replicas, made, minutes, jobs=given.jobs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/lab scale", description="Several replicas on one state.")
    runs = parser.add_subparsers(dest="run", required=True)

    def add(
        name: str, do: Callable[..., Awaitable[Report]], about: str, state: str = "postgres", replicas: int = 3
    ) -> argparse.ArgumentParser:
        one = runs.add_parser(name, help=about)
        one.add_argument("--state", default=state, help=f"a URL, or one of {', '.join(KINDS)} (default {state})")
        one.add_argument("--replicas", type=int, default=replicas, help=f"default {replicas}")
        one.add_argument("--clients", type=int, default=32, help="clients at once (default 32)")
        one.add_argument("--seed", type=int, default=1, help="of all that is random (default 1)")
        one.set_defaults(do=do)
        return one

    one = add("chains", _chains, "turns alternate between replicas at once")
    one.add_argument("--chains", type=int, default=10_000, help="default 10000")
    one.add_argument("--turns", type=int, default=3, help="of each chain (default 3)")

    one = add("kills", _kills, "replicas and PostgreSQL are killed")
    one.add_argument("--turns", type=int, default=20_000, help="default 20000")
    one.add_argument("--length", type=int, default=10, help="turns of one talk (default 10)")
    one.add_argument("--replica-every", type=float, default=4.0, help="seconds between two kills (default 4)")
    one.add_argument("--state-every", type=float, default=15.0, help="and of PostgreSQL (default 15)")

    one = add("quotas", _quotas, "owners with limits, while replicas are killed")
    one.add_argument("--requests", type=int, default=100_000, help="default 100000")
    one.add_argument("--door", choices=("http", "envoy"), default="http", help="with `envoy`, each has its own Envoy")
    levels = "with `all`, also keys, teams and models have limits (default owner)"
    one.add_argument("--levels", choices=("owner", "all"), default="owner", help=levels)
    one.add_argument(
        "--replica-every", type=float, default=20.0, help="seconds between two kills; 0: none (default 20)"
    )

    one = add("jobs", _jobs, "background responses, while replicas are killed")
    one.add_argument("--jobs", type=int, default=500, help="default 500")
    one.add_argument("--words", type=int, default=40, help="of an answer (default 40)")
    one.add_argument("--pause", type=float, default=0.05, help="between two of them (default 0.05)")
    one.add_argument("--cancels", type=int, default=20, help="responses that are cancelled elsewhere (default 20)")
    one.add_argument("--lease", type=float, default=3.0, help="background.lease (default 3)")
    one.add_argument("--replica-every", type=float, default=2.0, help="seconds between two kills (default 2)")

    one = add("faults", _faults, "PostgreSQL stands still, cannot be reached, is started again")
    one.add_argument("--frozen", type=float, default=8.0, help="seconds without an answer (default 8)")
    one.add_argument("--down", type=float, default=2.0, help="seconds between an end and the next start (default 2)")
    one.add_argument("--margin", type=float, default=1.5, help="seconds beyond state.deadline (default 1.5)")

    one = add("failover", _failover, "the primary is killed, and its standby promoted")
    one.add_argument("--way", choices=WAYS, default=WAYS[0], help=f"how clients find the other (default {WAYS[0]})")
    one.add_argument("--rounds", type=int, default=10, help="default 10")
    one.add_argument("--between", type=int, default=200, help="turns before each kill and after (default 200)")
    one.add_argument("--behind", type=int, default=0, help="replicate asynchronously, so many turns late (default: no)")

    one = add("clock", _clock, "clocks of replicas are minutes apart")
    one.add_argument("--minutes", type=float, default=7.0, help="how far the first is behind, and the last ahead")
    one.add_argument("--jobs", type=int, default=12, help="background responses (default 12)")
    one.add_argument("--pause", type=float, default=0.08, help="between two words of the model (default 0.08)")

    add("owners", _owners, "no owner sees another owner's data", "pgbouncer", 2)
    return parser


async def _main(given: argparse.Namespace, folder: Path) -> int:
    # A signal that ends the run also ends the processes that it started.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    report: Report = await given.do(given, folder)
    print(f"{report.table()}\n\nscale {given.run} on {given.state}: {'WRONG' if report.wrong else 'good'}", flush=True)
    return 1 if report.wrong else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if the report has no failure."""
    given = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="antiphon-scale-") as folder:
        return asyncio.run(_main(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
