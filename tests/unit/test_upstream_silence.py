"""When silence is told, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from antiphon.upstream.silence import Silence


class _Clock:
    """A loop's time and its timers; each `at` moves it there."""

    def __init__(self) -> None:
        self.now = 0.0
        self.due: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[Any], None], loop: Any) -> Any:
        self.due.append((when, lambda: call(loop)))
        return self

    def call_later(self, seconds: float, call: Callable[[Any], None], loop: Any) -> Any:
        return self.call_at(self.now + seconds, call, loop)

    def cancel(self) -> None:
        self.due.clear()

    def at(self, when: float) -> None:
        while self.due and self.due[0][0] <= when:
            self.now, call = self.due.pop(0)
            call()
        self.now = when


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
async def test_silence_is_told_when_a_wait_has_lasted(
    steps: str, told: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, heard = _Clock(), list[float]()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: clock)
    silence = Silence(10.0, lambda: heard.append(clock.now))
    for step in steps.split():
        verb, _, when = step.partition("@")
        clock.at(float(when))
        getattr(silence, verb)()
    clock.at(100.0)
    monkeypatch.undo()
    assert heard == ([] if told is None else [told])
