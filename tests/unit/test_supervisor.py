"""A supervised child: started again with a growing pause, killed when it does not answer, given up in the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NoReturn

import pytest
from structlog.testing import capture_logs

from antiphon.supervisor.children import Child, ParentPipe
from antiphon.supervisor.supervision import GivenUp, RestartPolicy, Supervised, tell_first
from tests.support.waiting import until

SECONDS = 90.0
SLEEPS = "import time; print('up', flush=True); time.sleep(60)"


class _Kept:
    """A child that is kept running, and what its children said."""

    def __init__(self, codes: Callable[[int], str], policy: RestartPolicy) -> None:
        self.lines: list[str] = []
        self.starts: list[float] = []
        self.alive = True
        self._codes = codes
        self.cannot: set[int] = set()
        """Of which number the starts are that the machine does not allow."""
        self._pipe = ParentPipe()
        self.supervised = Supervised("it", self._start, is_ready=self._is_ready, is_alive=self._is_alive, policy=policy)
        self.task = asyncio.ensure_future(self.supervised.keep())

    async def _start(self) -> Child:
        self.starts.append(time.monotonic())
        if len(self.starts) in self.cannot:
            raise OSError(errno.ENOSPC, "No space left on device")
        command = (sys.executable, "-c", self._codes(len(self.starts)))
        return await Child.start(
            "it", command, os.environ, pipe=self._pipe, write_line=lambda _, line: self.lines.append(line)
        )

    async def _is_ready(self) -> bool:
        return "up" in self.lines

    async def _is_alive(self, seconds: float) -> bool:
        return self.alive

    async def aclose(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        if self.supervised.child is not None:
            await self.supervised.child.stop(0.1)
        self._pipe.close()


Keep = Callable[..., _Kept]


@pytest.fixture
async def keep() -> AsyncIterator[Keep]:
    async with contextlib.AsyncExitStack() as stack:

        def make(codes: Callable[[int], str] | str, **policy: float) -> _Kept:
            kept = _Kept((lambda _: codes) if isinstance(codes, str) else codes, RestartPolicy(**policy))  # type: ignore[arg-type]
            stack.push_async_callback(kept.aclose)
            return kept

        yield make


async def test_what_ends_is_started_again(keep: Keep) -> None:
    kept = keep(lambda n: "raise SystemExit(3)" if n == 1 else SLEEPS, hung=0, first_pause=0.01)
    kept.supervised.lasting = True
    await until(lambda: "up" in kept.lines, SECONDS)
    assert len(kept.starts) == 2 and (kept.supervised.died, kept.supervised.hung) == (1, 0)


async def test_what_the_machine_cannot_start_again_is_tried_again(keep: Keep) -> None:
    kept = keep(lambda n: "raise SystemExit(3)" if n == 1 else SLEEPS, hung=0, first_pause=0.01, longest_pause=0.01)
    kept.supervised.lasting, kept.cannot = True, {2, 3}
    with capture_logs() as lines:
        await until(lambda: "up" in kept.lines, SECONDS)
    assert len(kept.starts) == 4 and kept.supervised.life == 2
    causes = [line["cause"] for line in lines if line["event"] == "process_not_started"]
    assert causes == ["No space left on device"] * 2


async def test_before_everything_was_ready_what_cannot_be_started_is_the_end(keep: Keep) -> None:
    kept = keep(SLEEPS)
    kept.cannot = {1}
    with pytest.raises(OSError, match="No space left"):
        await asyncio.wait_for(kept.task, SECONDS)


async def test_before_everything_was_ready_the_first_death_is_the_end(keep: Keep) -> None:
    kept = keep("print('no way'); raise SystemExit(3)")
    with pytest.raises(
        GivenUp, match=r"^it ended with status 3; the log above has its last output. 'antiphon doctor' checks "
    ):
        await asyncio.wait_for(kept.task, SECONDS)
    assert len(kept.starts) == 1


async def test_after_some_quick_deaths_the_place_is_given_up(keep: Keep) -> None:
    kept = keep("print('no way'); raise SystemExit(3)", deaths=4, first_pause=0.05, longest_pause=0.1)
    kept.supervised.lasting = True
    with pytest.raises(GivenUp, match=r"status 3 \(4 times in a row, soon after its start\); the log above"):
        await asyncio.wait_for(kept.task, SECONDS)
    assert len(kept.starts) == 4
    pauses = [after - before for before, after in zip(kept.starts, kept.starts[1:], strict=False)]
    assert all(took >= pause for took, pause in zip(pauses, (0.05, 0.1, 0.1), strict=True))


async def test_deaths_after_long_lives_are_never_too_many(keep: Keep) -> None:
    code: Callable[[int], str] = lambda n: "raise SystemExit(3)" if n <= 5 else SLEEPS  # noqa: E731
    kept = keep(code, deaths=2, quick=0.0, first_pause=0.01)
    kept.supervised.lasting = True
    await until(lambda: "up" in kept.lines, SECONDS)
    assert len(kept.starts) == 6


async def test_a_child_that_does_not_answer_is_killed_and_replaced(keep: Keep) -> None:
    kept = keep(SLEEPS, hung=0.3, first_pause=0.01)
    kept.supervised.lasting = True
    await until(lambda: "up" in kept.lines, SECONDS)
    kept.alive = False
    await until(lambda: kept.supervised.hung, SECONDS)
    kept.alive = True
    await until(
        lambda: len(kept.starts) == 2 and kept.supervised.child is not None and kept.supervised.child.status is None,
        SECONDS,
    )
    assert kept.supervised.died == 0


async def test_a_child_that_stands_still_right_after_everything_was_ready_is_replaced(keep: Keep) -> None:
    """Its supervisor had not yet asked whether it is ready, and now it never says so."""
    kept = keep("import time; time.sleep(60)", hung=0.3, first_pause=0.01)
    await until(lambda: kept.starts, SECONDS)
    kept.supervised.everything_is_ready()
    kept.alive = False
    await until(lambda: kept.supervised.hung, SECONDS)


async def test_one_answer_that_fails_is_no_reason(keep: Keep) -> None:
    kept = keep(SLEEPS, hung=0.3)
    kept.supervised.lasting = True
    asked: list[float] = []

    async def now_and_then(seconds: float) -> bool:
        asked.append(seconds)
        return len(asked) % 3 == 0

    kept.supervised.is_alive = now_and_then
    await until(lambda: len(asked) > 9, SECONDS)
    assert len(kept.starts) == 1


async def test_the_third_check_without_an_answer_is_the_last(keep: Keep) -> None:
    kept = keep(SLEEPS, hung=0.3, first_pause=0.01)
    kept.supervised.lasting = True
    asked: list[tuple[int, float]] = []

    async def silent(seconds: float) -> bool:
        asked.append((len(kept.starts), seconds))
        return False

    kept.supervised.is_alive = silent
    await until(lambda: len(kept.starts) > 1, SECONDS)
    assert [seconds for child, seconds in asked if child == 1] == [pytest.approx(0.05)] * 3


async def test_a_child_that_never_gets_ready_is_killed(keep: Keep) -> None:
    kept = keep(lambda n: "import time; time.sleep(60)" if n == 1 else SLEEPS, hung=0.3, starting=4.0, first_pause=0.01)
    kept.supervised.lasting = True
    await until(lambda: "up" in kept.lines, SECONDS)
    assert kept.supervised.hung == 1


async def test_giving_up_says_which_how_often_and_where_to_look(keep: Keep) -> None:
    kept = keep("import os; os.kill(os.getpid(), 9)", deaths=2, first_pause=0.01)
    kept.supervised.lasting = True
    with pytest.raises(GivenUp) as told:
        await asyncio.wait_for(kept.task, SECONDS)
    assert (told.value.name, told.value.deaths) == ("it", 2)
    said = str(told.value)
    assert said.startswith("it was killed by SIGKILL (2 times in a row, soon after its start); it printed nothing; ")
    assert "memory ran out" in said and said.endswith("'antiphon doctor' checks what the process needs")


async def test_a_child_that_hangs_every_time_is_told_apart_from_one_that_was_killed(keep: Keep) -> None:
    kept = keep(SLEEPS, hung=0.1, deaths=1, quick=0.0)
    await until(lambda: "up" in kept.lines, SECONDS)
    kept.supervised.everything_is_ready()
    kept.alive = False
    with pytest.raises(GivenUp, match=r"^it did not answer \(timeouts\.hung\) and was killed; the log above"):
        await asyncio.wait_for(kept.task, SECONDS)


async def test_of_those_that_give_up_the_first_is_told_and_no_other_is_logged() -> None:
    loop = asyncio.get_running_loop()
    logged: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _, context: logged.append(context))
    failed: asyncio.Future[BaseException] = loop.create_future()

    async def gives_up(name: str) -> NoReturn:
        raise OSError(name)

    for name in ("one", "two"):
        loop.create_task(gives_up(name)).add_done_callback(partial(tell_first, failed))
    cancelled = loop.create_task(gives_up("three"))
    cancelled.add_done_callback(partial(tell_first, failed))
    cancelled.cancel()
    assert str(await failed) == "one"
    for _ in range(3):
        await asyncio.sleep(0)
    gc.collect()
    assert logged == []
