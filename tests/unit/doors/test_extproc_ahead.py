"""How far driven streams may be ahead of clients that nobody sees."""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from antiphon.config.limits import LimitSettings
from antiphon.doors.extproc.immediate_response import RATE, SHARE, Ahead


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_no_flood() -> None:
    with Ahead(LimitSettings(), _Clock()).stream() as stream:
        assert stream.seconds(SHARE) == 0
        assert stream.seconds(SHARE + RATE) == 1.0


def test_what_is_written_as_fast_as_clients_read_never_waits() -> None:
    clock = _Clock()
    with Ahead(LimitSettings(), clock).stream() as stream:
        for second in range(1, 10_000):
            clock.now += 1
            assert stream.seconds(second * RATE) == 0


@pytest.mark.parametrize("streams", [1, 8, 64, 1000])
def test_all_together_are_ahead_by_no_more_than_is_allowed(streams: int) -> None:
    clock, limits = _Clock(), LimitSettings(drive_ahead_bytes=64 << 20)
    ahead = Ahead(limits, clock)
    written = [0] * streams
    ready = [0.0] * streams
    step = 8 * 1024
    with ExitStack() as stack:
        opened = [stack.enter_context(ahead.stream()) for _ in range(streams)]
        began = clock.now
        for _ in range(20_000):
            number = random.Random(clock.now).randrange(streams)
            if ready[number] <= clock.now:
                written[number] += step
                ready[number] = clock.now + opened[number].seconds(written[number])
            clock.now += 0.0005
        read = (clock.now - began) * RATE
        assert sum(max(0.0, size - read) for size in written) <= limits.drive_ahead_bytes + streams * step


def test_shares_are_given_back() -> None:
    ahead = Ahead(LimitSettings(drive_ahead_bytes=16 << 20), _Clock())
    with ahead.stream(), ahead.stream(), ahead.stream(), ahead.stream():
        assert ahead.share == 4 << 20
    assert ahead.share == SHARE
