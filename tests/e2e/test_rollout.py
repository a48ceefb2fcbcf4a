"""Two replicas behind a real Envoy that checks their health are restarted one after the other, and no client notices.

Everything that is asked for goes on meanwhile: streams, changes, uploads, WebSockets, background streams. The larger
run is `scripts/lab rollout`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lab.bench.variants import Process
from lab.rollout.course import Load, roll
from lab.rollout.replicas import MODES, Mode, Plan
from lab.rollout.report import table

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("mode", MODES)
async def test_a_rolling_restart(mode: Mode, folder: Path) -> None:
    upstream = await Process.start(folder / "upstream.log", sys.executable, "-m", "lab.rollout.upstream")
    try:
        # The drain is long enough for any machine: what is shown is that nothing needs to be cut.
        plan, load = Plan(mode, replicas=2, notice=5.0, drain=120.0), Load(streams=8, others=1, seconds=3.0)
        result = await roll(plan, load, upstream.ready, folder / "run", warm=2.0, rest=0.5)
    finally:
        await upstream.stop()
    assert result.good, table(mode, result)
