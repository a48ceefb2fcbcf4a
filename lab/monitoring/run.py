"""`scripts/lab monitoring`: tests the dashboard and the alert rules with a real Prometheus.

Lives here: the expected alerts and series, and their time limits. Not here: the traffic (`traffic.py`), Prometheus
(`tests/support/prometheus.py`).

The run uses the delivered rules, but divides their times, so that five minutes become seconds. In the first phase all
servers work and clients make mistakes: no alert may fire. Then each upstream, a tool and a tenant fail in a different
manner. Each must raise the alert for its fault, and no other alert may fire. Then the faults end, and the alerts must
end too. In the last phase the run kills a process.

Invariant: a run ends by itself. Every problem is a line of its report and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import yaml

from lab.monitoring import traffic
from lab.monitoring.traffic import Job, Place
from lab.report import Report
from tests.support.monitoring_files import (
    FOLDER,
    PROMETHEUS,
    RULES,
    Expression,
    alerts,
    panel_expressions,
    rules,
    scaled,
)
from tests.support.prometheus import NotInstalled, Prometheus, program, promtool, running_prometheus

_SCALE = 20
_RATE = f"[{300 // _SCALE}s]"
# The maximum time until the last alert fires or ends on a busy machine: the rule's window plus its `for`.
_PATIENCE = 180.0
_POLL_SECONDS = 0.5

Alert = tuple[str, ...]
EXPECTED: frozenset[Alert] = frozenset({
    ("AntiphonUpstreamFails", "upstream=failing"),
    ("AntiphonUpstreamRefusesKey", "upstream=wrong-key"),
    ("AntiphonUpstreamRateLimits", "upstream=limited"),
    ("AntiphonUpstreamUnreachable", "upstream=dead"),
    ("AntiphonUpstreamUnusable", "upstream=garbled"),
    ("AntiphonUpstreamSlow", "upstream=slow"),
    ("AntiphonUpstreamTimesOut", "upstream=silent"),
    ("AntiphonUpstreamBreaksOff", "upstream=cutting"),
    ("AntiphonToolFails", "tool=web_search"),
    ("AntiphonToolHangs", "tool=mcp"),
    ("AntiphonTurnsAway", "setting=limits.owner_requests"),
})  # fmt: skip
_NAMING = ("upstream", "tool", "setting", "operation", "process", "pool")


def _check_files(report: Report) -> None:
    for what, arguments in (
        (f"promtool check rules {RULES.name}", ("check", "rules", str(RULES))),
        (f"promtool check config {PROMETHEUS.name}", ("check", "config", str(PROMETHEUS))),
        ("promtool test rules tests/*.yml", ("test", "rules", *map(str, sorted((FOLDER / "tests").glob("*.yml"))))),
    ):
        good, said = promtool(*arguments)
        report.check(what, [] if good else [said])


def _fast(folder: Path, target: str) -> Path:
    """Write Prometheus's delivered configuration for this target, with all times divided. Returns its path."""
    (folder / RULES.name).write_text(scaled(RULES.read_text(), _SCALE))
    config = yaml.safe_load(PROMETHEUS.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    written = folder / PROMETHEUS.name
    written.write_text(yaml.safe_dump(config))
    return written


async def _firing(prometheus: Prometheus) -> set[Alert]:
    return {
        (labels["alertname"], *(f"{name}={labels[name]}" for name in _NAMING if name in labels))
        for labels in await prometheus.firing()
    }


def _named(found: set[Alert]) -> list[str]:
    return sorted(" ".join(one) for one in found)


async def _watch(
    prometheus: Prometheus, over: Callable[[set[Alert]], bool], allowed: frozenset[Alert]
) -> tuple[set[Alert], dict[Alert, float], set[Alert]]:
    """Poll the alerts until `over` is true for the firing ones. Returns the firing alerts, the seconds until each first
    fired, and the alerts that fired although they are not in `allowed`."""
    began = time.monotonic()
    seen: dict[Alert, float] = {}
    strange: set[Alert] = set()
    while True:
        firing = await _firing(prometheus)
        for one in firing:
            seen.setdefault(one, time.monotonic() - began)
        strange |= firing - allowed
        if over(firing) or time.monotonic() - began > _PATIENCE:
            return firing, seen, strange
        await asyncio.sleep(_POLL_SECONDS)


@asynccontextmanager
async def _jobs(place: Place, jobs: tuple[Job, ...], pause: float) -> AsyncIterator[None]:
    over = asyncio.Event()
    running = asyncio.ensure_future(traffic.keep(place, jobs, pause, over))
    try:
        yield
    finally:
        over.set()
        await running


async def _nothing_fires(report: Report, prometheus: Prometheus, seconds: float) -> None:
    until = time.monotonic() + seconds
    _, _, strange = await _watch(prometheus, lambda _: time.monotonic() > until, frozenset())
    report.check(f"all is well but for what clients do: no alert in {seconds:g} s", _named(strange))


async def _each_fires(report: Report, prometheus: Prometheus) -> None:
    firing, seen, strange = await _watch(prometheus, lambda firing: firing >= EXPECTED, EXPECTED)
    if firing >= EXPECTED:
        # Wait for alerts that fire later because of the same fault.
        until = time.monotonic() + 15
        firing, _, more = await _watch(prometheus, lambda _: time.monotonic() > until, EXPECTED)
        strange |= more
    for one in sorted(EXPECTED & seen.keys()):
        report.say(f"         {' '.join(one)}: fired after {seen[one]:.0f} s, with its times at 1/{_SCALE}")
    problems = [f"does not fire: {one}" for one in _named(set(EXPECTED - firing))]
    problems += [f"fires too: {one}" for one in _named(strange)]
    report.check("what is broken raises its own alert and no other", problems)


async def _all_has_data(report: Report, prometheus: Prometheus) -> None:
    async def without(expressions: Sequence[Expression]) -> list[str]:
        return [f"{one.where}: no data: {one.text}" for one in expressions if not await prometheus.data(one.text)]

    def fast(text: str) -> str:
        return scaled(text, _SCALE)

    shown = [Expression(one.where, _as_grafana(one.without_threshold)) for one in panel_expressions()]
    report.check(f"{len(shown)} expressions of the dashboard have data", await without(shown))
    recorded = [
        Expression(rule["record"], _selector({"__name__": rule["record"], **rule.get("labels", {})}))
        for rule in rules()
        if "record" in rule
    ]
    report.check(f"{len(recorded)} recorded series have data", await without(recorded))
    looked_at = [Expression(one["alert"], fast(Expression("", one["expr"]).without_threshold)) for one in alerts()]
    report.check(f"{len(looked_at)} alerts have data before their thresholds", await without(looked_at))
    for one in alerts():
        await prometheus.data(fast(one["expr"]))
    report.check("no rule fails", await prometheus.rules_that_fail())


def _as_grafana(text: str) -> str:
    """Replace Grafana's variables in an expression by values, as Grafana does."""
    values = {"[$__rate_interval]": _RATE, "$job": "antiphon", "$instance": ".*"}
    for name, value in values.items():
        text = text.replace(name, value)
    return text


def _selector(labels: dict[str, str]) -> str:
    return "{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


async def _process_dies(report: Report, place: Place, prometheus: Prometheus) -> None:
    os.kill(place.workers()[0], signal.SIGKILL)
    died = frozenset(
        {("AntiphonProcessRestarts", "process=sidecar 0"), ("AntiphonProcessRestarts", "process=sidecar 1")}
    )
    firing, _, strange = await _watch(prometheus, lambda firing: len(firing & died) == 1, died)
    problems = [] if len(firing & died) == 1 else ["AntiphonProcessRestarts does not fire"]
    report.check(f"a killed process: {', '.join(_named(firing))}", problems + _named(strange))


async def _metrics_are_clean(report: Report, place: Place) -> None:
    async with place.session.get(f"http://{place.metrics}/metrics") as got:
        text = await got.read()
    good, said = promtool("check", "metrics", given=text)
    report.check(f"promtool check metrics, {len(text) >> 10} KiB", [] if good and not said else [said])


async def _run(folder: Path, report: Report, calm: float) -> None:
    async with traffic.place(folder) as place, running_prometheus(folder, _fast(folder, place.metrics)) as prometheus:
        async with _jobs(place, traffic.GOOD, 0.5):
            report.say("a gateway with two workers, Envoy, 10 upstreams, tools; Prometheus reads it once a second")
            await _nothing_fires(report, prometheus, calm)
            traffic.break_search(place)
            async with _jobs(place, traffic.BAD, 0.5):
                report.say("seven broken upstreams and a dead one, a search and a tool that do not work, a flood")
                await _each_fires(report, prometheus)
                await _all_has_data(report, prometheus)
                await _metrics_are_clean(report, place)
            traffic.mend_search(place)
            firing, _, strange = await _watch(prometheus, lambda firing: not firing, EXPECTED)
            report.check("they stop, and every alert goes", _named(firing | strange))
        await _process_dies(report, place, prometheus)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if the run found no problem, and 2 if Prometheus is not installed."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab monitoring", description="Dashboard and alerts with a Prometheus."
    )
    parser.add_argument("--calm", type=float, default=40.0, help="seconds in which nothing may fire (default 40)")
    given = parser.parse_args(arguments)
    try:
        _, version = promtool("--version")
        program("prometheus")
    except NotInstalled as missing:
        print(f"scripts/lab monitoring: {missing}", file=sys.stderr)
        return 2
    # The log lines of the tool servers do not matter for this run.
    logging.disable(logging.WARNING)
    print(f"{datetime.date.today()}, {version.splitlines()[0]}")
    report = Report()
    _check_files(report)
    with tempfile.TemporaryDirectory(prefix="antiphon-monitoring-") as folder:
        try:
            asyncio.run(_run(Path(folder), report, given.calm))
        except (aiohttp.ClientError, TimeoutError, RuntimeError, AssertionError, ValueError) as error:
            report.check("the run itself", [f"{type(error).__name__}: {error}"])
    print("monitoring: all good" if not report.wrong else f"monitoring: {len(report.wrong)} problems")
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
