"""Whatever becomes of the processes, and in whatever order their texts come: sums never go backwards, and count nothing
twice."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from antiphon.observability.metrics import Metrics
from antiphon.supervisor.merged_metrics import MergedMetrics
from tests.support.counters import Watcher
from tests.support.effort import examples

_WORKERS = st.sampled_from(["a", "b", "c"])
_SECONDS = st.floats(0, 1000)
_STEP = st.one_of(
    # It serves one more, and is asked for its numbers.
    st.tuples(st.just("answer"), _WORKERS, _SECONDS),
    # Which of the answers that are under way arrives.
    st.tuples(st.just("arrive"), st.integers(0, 9), st.none()),
    st.tuples(st.just("die"), _WORKERS, st.none()),
    st.tuples(st.just("notice"), _WORKERS, st.none()),
)


@given(st.lists(_STEP, min_size=10, max_size=50))
@settings(max_examples=examples(60))
def test_counters_never_go_backwards(steps: list[tuple[str, Any, Any]]) -> None:
    merged, watcher = MergedMetrics(), Watcher()
    lives = dict.fromkeys("abc", 1)
    alive = {name: Metrics() for name in "abc"}
    under_way: list[tuple[str, int, str]] = []
    served, seconds = 0, Fraction()
    for what, which, value in steps:
        if what == "answer":
            alive[which].response_finished("completed", "http", value)
            served, seconds = served + 1, seconds + Fraction(value)
            under_way.append((which, lives[which], alive[which].render().decode()))
        elif what == "arrive" and under_way:
            merged.take(*under_way.pop(which % len(under_way)))
        elif what == "die":
            lives[which] += 1
            alive[which] = Metrics()
        elif what == "notice":
            merged.forget(which, lives[which])
        if what in ("arrive", "notice"):
            watcher.see(merged.render().decode())
    assert watcher.total("responses_total") <= served
    # Each process adds up floats of its own.
    assert watcher.total("response_duration_seconds_sum") <= seconds * (1 + Fraction(1, 10**12))
