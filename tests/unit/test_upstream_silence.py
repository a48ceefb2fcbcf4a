"""When silence is told, by a clock that the test moves."""

from __future__ import annotations

import asyncio

import pytest

from antiphon.upstream.silence import Silence
from tests.support.fake_time import in_fake_time


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("wait@0", 10),
        ("wait@5", 15),
        ("wait@0 heard@9 wait@9", 19),
        ("wait@0 heard@4 wait@5 heard@12 wait@12", 22),
        # A reader that is slow itself.
        ("wait@0 heard@1", None),
        ("wait@0 heard@1 wait@35", 45),
        ("wait@0 heard@9 wait@9 stop@18", None),
    ],
)
def test_silence_is_told_when_a_wait_has_lasted(steps: str, told: float | None) -> None:
    heard: list[float] = []

    async def play() -> None:
        loop = asyncio.get_running_loop()
        silence = Silence(10.0, lambda: heard.append(loop.time()))
        for step in steps.split():
            verb, _, when = step.partition("@")
            await asyncio.sleep(float(when) - loop.time())
            getattr(silence, verb)()
        await asyncio.sleep(100.0 - loop.time())

    in_fake_time(play())
    assert heard == ([] if told is None else [told])
