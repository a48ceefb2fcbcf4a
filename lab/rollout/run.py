"""`scripts/lab rollout`: runs a rolling restart or upgrade under load in both modes, and prints tables and a verdict.

Lives here: the command line. Not here: the rollout (`course.py`), the report (`report.py`).

Invariant: a run ends by itself and stops everything that it started. The exit status is 0 if no request failed and no
answer was cut.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lab.bench.variants import Process
from lab.rollout.builds import HERE, Build, make_builds
from lab.rollout.course import Course, Load, restart_all, roll, upgrade
from lab.rollout.replicas import MODES, Plan
from lab.rollout.report import table
from lab.rollout.shared import STATES, opened


async def _main(given: argparse.Namespace, folder: Path) -> int:
    # A signal that ends the run also ends the processes that it started.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    # The number of clients is high enough that each replica serves some.
    long = 2 * given.replicas if given.others else 0
    load = Load(given.streams, given.others, given.seconds, given.pause, long, 2 * given.drain)
    command = (sys.executable, "-m", "lab.rollout.upstream", "--pause", str(given.pause))
    folder.mkdir(parents=True, exist_ok=True)
    build: Build = HERE
    course: Course = restart_all
    if given.upgrade:
        print("builds …", file=sys.stderr, flush=True)
        builds = await asyncio.to_thread(make_builds, folder / "builds")
        build, course = builds[0], upgrade(*builds)
    upstream = await Process.start(folder / "upstream.log", *command)
    results = []
    try:
        for mode in given.modes:
            print(f"{mode} …", file=sys.stderr, flush=True)
            place = folder / mode
            place.mkdir()
            async with opened(given.state, place) as shared:
                plan = Plan(mode, given.replicas, given.notice, given.drain, shared)
                result = await roll(
                    plan, load, upstream.ready, place, warm=given.warm, rest=given.rest, course=course, build=build
                )
            results.append(result)
            print(table(f"{'upgrade, ' if given.upgrade else ''}{shared.kind}, {mode}", result), flush=True)
    finally:
        await upstream.stop()
    good = all(result.good for result in results)
    print("\nrollout: nobody noticed" if good else "\nrollout: something failed or was cut")
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if no request failed and no answer was cut."""
    parser = argparse.ArgumentParser(prog="scripts/lab rollout", description="A rollout that no client notices.")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="which doors (default: http envoy)")
    parser.add_argument(
        "--state", help=f"{', '.join(STATES)} or a postgresql:// URL (default sqlite, with --upgrade postgres)"
    )
    parser.add_argument(
        "--upgrade", action="store_true", help="to a build whose schema adds, then to one whose schema takes away"
    )
    parser.add_argument("--replicas", type=int, default=3, help="default 3")
    parser.add_argument("--streams", type=int, default=200, help="streams at once (default 200)")
    parser.add_argument("--others", type=int, default=4, help="clients of each other kind (default 4)")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long a stream takes (default 5)")
    parser.add_argument("--pause", type=float, default=0.5, help="between two words of a stream (default 0.5)")
    parser.add_argument("--notice", type=float, default=4.0, help="timeouts.notice (default 4)")
    parser.add_argument("--drain", type=float, default=25.0, help="timeouts.drain (default 25)")
    parser.add_argument("--warm", type=float, default=6.0, help="seconds of load before the first SIGTERM (default 6)")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between two replicas (default 2)")
    parser.add_argument("--keep", type=Path, help="a folder for logs and data, which is not deleted")
    given = parser.parse_args(arguments)
    given.state = given.state or ("postgres" if given.upgrade else "sqlite")
    if given.state not in STATES and not given.state.startswith("postgresql://"):
        parser.error(f"--state: one of {', '.join(STATES)}, or a postgresql:// URL")
    if given.upgrade and given.state == "sqlite":
        parser.error("--upgrade: its steps are PostgreSQL's; choose another --state")
    if given.upgrade and given.state not in STATES and len(given.modes) > 1:
        parser.error("--upgrade: after it the old build cannot start on that database; choose one of --modes")
    if given.upgrade and given.replicas < 2:
        parser.error("--replicas: an upgrade that no client notices needs 2")
    if given.keep is not None:
        return asyncio.run(_main(given, given.keep))
    with tempfile.TemporaryDirectory(prefix="at-", dir="/tmp") as folder:
        return asyncio.run(_main(given, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
