"""`scripts/lab kubernetes`: tests each shape of the chart on the cluster of KUBECONFIG, and prints tables and a
verdict.

Lives here: the command line and the output. Not here: the stages (`course.py`).

Invariant: a run deletes its namespaces, also when it is interrupted. The exit status is 0 if clients noticed no planned
change, and every client was served again after a kill.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import statistics
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from lab.kubernetes.cluster import Place, Wrong, run
from lab.kubernetes.course import PARTS, Course, Stage
from lab.kubernetes.database import reachable_postgres
from tests.support.chart_rendering import Refused, render
from tests.support.chart_values import REFUSED

SHAPES = ("sidecar", "gateway", "http")
_SHOWN = 6
_REQUESTS = {"requests": {"cpu": "20m", "memory": "64Mi"}}
_HEAD = (
    "| what | seconds | asked | failed | cut | served again, median / longest | |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def _values(shape: str, envoy: str) -> dict[str, Any]:
    repository, _, tag = envoy.rpartition(":")
    names = ("ownerKey", "sealingKeys", "stateUrl", *(("sidecarSecret",) if shape == "gateway" else ()))
    return {
        "shape": shape,
        "replicas": 2,
        "settings": {"upstream": {"url": "http://chat:8081/v1"}, "files": {"enabled": False}},
        "state": {"kind": "postgresql"},
        "secrets": {name: {"name": "antiphon"} for name in names},
        "envoy": {
            "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
            "resources": _REQUESTS,
        },
        "resources": _REQUESTS,
        "test": {"model": "demo"},
    }


def row(stage: Stage) -> str:
    """One row of the table, followed by the failures of the stage, or by the clients' observations."""
    gaps = f"{statistics.median(stage.gaps):.1f} / {max(stage.gaps):.1f} s" if stage.gaps else "-"
    counted = (stage.asked, stage.failed, stage.cut) if stage.asked else ("-", "-", "-")
    cells = (stage.name, f"{stage.seconds:.0f}", *counted, gaps, stage.note)
    lines = ["| " + " | ".join(str(cell) for cell in cells) + " |"]
    lines += [f"{'seen' if stage.good else 'WRONG'} {text[:300]}" for text in stage.said[:_SHOWN]]
    return "\n".join(lines)


def _refused() -> bool:
    """Whether helm refuses all wrong values. This check needs no cluster."""
    taken = []
    for name, (values, _) in REFUSED.items():
        try:
            render(values)
        except Refused:
            continue
        taken.append(name)
    print(f"\nwrong values: {len(REFUSED) - len(taken)} of {len(REFUSED)} refused {taken or ''}", flush=True)
    return not taken


async def _main(given: argparse.Namespace) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    good = _refused()
    async with AsyncExitStack() as opened:
        state, database = given.state_url, None
        if state is None:
            address = "{.items[0].status.addresses[?(@.type=='InternalIP')].address}"
            host = await run("kubectl", "get", "nodes", "-o", f"jsonpath={address}")
            database = await opened.enter_async_context(reachable_postgres(host, SHAPES))
            state = database.url
        for shape in given.shapes:
            place = Place(shape, f"{given.namespace}-{shape}", _values(shape, given.envoy), given.image)
            print(f"\n### `shape: {shape}`\n\n{_HEAD}", flush=True)
            try:
                # Each shape has a separate database, because its keys differ.
                await place.begin({"state.url": f"{state}/{shape}"})
                course = Course(place, given.image, given.next, given.streams, given.others, database, given.parts)
                course.told = lambda stage: print(row(stage), flush=True)
                await course.run()
                good = good and all(stage.good for stage in course.stages)
            except Wrong as wrong:
                print(f"WRONG {wrong}")
                good = False
            finally:
                if not given.keep:
                    await place.end()
    print("\nkubernetes: as it must be" if good else "\nkubernetes: something is wrong")
    return 0 if good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if all stages passed."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab kubernetes", description="The chart on the cluster of KUBECONFIG."
    )
    parser.add_argument("--image", required=True, help="REPOSITORY:TAG of Antiphon, on the nodes already")
    parser.add_argument("--next", required=True, help="the one that is upgraded to")
    parser.add_argument("--envoy", default="docker.io/envoyproxy/envoy:v1.40.0", help="Envoy's image")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=PARTS,
        help="changes that no client may notice, changes that fail, and failures of parts",
    )
    parser.add_argument(
        "--state-url",
        help="postgresql://… without a database, as pods reach it, with an empty database for each shape, of "
        "its name; unset: a server on this machine, which must be the node",
    )
    parser.add_argument("--streams", type=int, default=50, help="streams at once, of 5 s and of 20 s (default 50)")
    parser.add_argument("--others", type=int, default=4, help="clients of each other kind (default 4)")
    parser.add_argument("--namespace", default="antiphon-test", help="the beginning of the namespaces' names")
    parser.add_argument("--keep", action="store_true", help="leave the namespaces for a look")
    given = parser.parse_args(arguments)
    for program in ("kubectl", "helm"):
        if shutil.which(program) is None:
            parser.error(f"{program} is not in PATH")
    return asyncio.run(_main(given))


if __name__ == "__main__":
    sys.exit(main())
