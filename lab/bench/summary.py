"""Computes the result of a benchmark from the rounds of one run or of several runs.

Lives here: medians, ratios within a round, and which rounds count. Not here: the measurements (`rounds.py`), tables.

Absolute times of one hour do not hold for another, and ratios of an hour with much other load mislead. So a round
counts only if Envoy alone took at most `SLOW` times its usual CPU time per small request.

Invariant: if no round counts, the result has no ratios and no CPU times.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lab.bench.report import Result
from lab.bench.variants import Values

SLOW = 2.0
_USUAL = Path(__file__).with_name("usual.json")
_COST = "cpu json envoy"

Round = dict[str, Values]


def usual_cost(rounds: Sequence[Round], model: str) -> float:
    """The usual CPU time in µs of Envoy alone for a small request. It comes from `usual.json` by the processor's model;
    for another model it is the median of the rounds."""
    known: dict[str, float] = json.loads(_USUAL.read_text())["microseconds"]
    found = [cost for one in rounds if (cost := one.get("envoy", {}).get(_COST))]
    return known.get(model) or (statistics.median(found) if found else 0.0)


def usable(rounds: Sequence[Round], usual: float) -> list[Round]:
    """The rounds that count."""
    return [one for one in rounds if one.get("envoy", {}).get(_COST, 0.0) <= SLOW * usual]


def processor_model() -> str:
    """The model of this machine's processor."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    return next((value.strip() for name, _, value in lines if name.strip() == "model name"), "")


def summarise(rounds: Sequence[Round], result: dict[str, Any]) -> Result:
    """The result with the figures of these rounds; `result` has all other parts."""
    names = list(dict.fromkeys(name for one in rounds for name in one))
    usual = usual_cost(rounds, result["machine"].get("processor", ""))
    good = usable(rounds, usual)

    def median(of: Sequence[Round], name: str, base: str | None, combine: str) -> Values:
        samples: dict[str, list[float]] = {}
        for values in of:
            for key, value in values.get(name, {}).items():
                # Only Antiphon stores responses. So Antiphon's stored results are compared with unstored results of
                # other variants.
                other = values.get(base or "", {}).get(key.removeprefix("stored_"))
                if base is None:
                    samples.setdefault(key, []).append(value)
                elif other:
                    samples.setdefault(key, []).append(value / other if combine == "ratio" else value - other)
        return {key: statistics.median(found) for key, found in samples.items()}

    def against(base: str, combine: str) -> dict[str, Values]:
        return {name: median(good, name, base, combine) for name in names} if base in names else {}

    medians = {name: median(good or rounds, name, None, "") for name in names}
    costs = {name: values if good else {} for name, values in medians.items()}
    return cast(
        Result,
        {
            **result,
            "settings": {**result["settings"], "rounds": len(rounds), "rounds_that_count": len(good), "usual": usual},
            "median": medians,
            "added_to_envoy": against("envoy", "difference"),
            "ratio_to_envoy": against("envoy", "ratio"),
            "ratio_to_echo": against("echo", "ratio"),
            "cpu_us_per_chunk": {
                name: {key.removeprefix("cpu "): value for key, value in values.items() if key.startswith("cpu ")}
                for name, values in costs.items()
            },
            "rounds": list(rounds),
        },
    )


def each_round(result: Result) -> list[Result]:
    """A result for each round that counts, for the spread of the figures."""
    usual = result["settings"].get("usual", 0.0)
    return [summarise([one], cast(dict[str, Any], result)) for one in usable(result["rounds"], usual)]


def merge(files: Sequence[Path]) -> Result:
    """The result of the rounds of several runs, from the files of `--json`."""
    runs: list[dict[str, Any]] = [json.loads(file.read_text()) for file in files]
    merged = dict(runs[0])
    for one in runs[1:]:
        merged["apart"] = merged["apart"] or one["apart"]
        merged["memory_bytes_per_stream"] = {**one["memory_bytes_per_stream"], **merged["memory_bytes_per_stream"]}
        merged["complaints"] = merged["complaints"] + one["complaints"]
    shares = [one["machine"]["others_share"] for one in runs]
    merged["machine"] = {**merged["machine"], "others_share": statistics.mean(shares), "runs": len(runs)}
    return summarise([one for run in runs for one in run["rounds"]], merged)
