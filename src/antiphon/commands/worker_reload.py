"""The same other settings for all workers of `antiphon up`, or for none.

Lives here: the parent's side. It has every worker prepare, and swap when all have. Not here: the worker's side
(`told_settings.py`), when (`reloading.py`), how the two talk (`orders.py`).

Invariants: when one worker cannot prepare, nobody swaps; a worker that cannot swap any more what it had prepared, or
that was started in between, is brought to the same settings or replaced.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from antiphon.commands.child_settings import file_values, secret_environment
from antiphon.commands.children import Child
from antiphon.commands.supervisor import Supervised
from antiphon.config.settings import Settings
from antiphon.errors import ConfigError

_log = structlog.get_logger(__name__)

PREPARE_SECONDS = 15.0
_SWAP_SECONDS = 5.0


async def swap_workers(workers: Sequence[Supervised], settings: Settings, commit: Callable[[], None]) -> None:
    """Have all workers serve with these settings. Raises `ConfigError` when one cannot; then none does.

    `commit` is called when all can: what is started from then on must have these settings.
    """
    order = {"do": "prepare", "settings": file_values(settings), "secrets": secret_environment(settings)}
    asked = {worker.name: worker.child for worker in workers if _lives(worker)}
    said = await asyncio.gather(*(_give(child, order, PREPARE_SECONDS) for child in asked.values()))
    problems = {name: problem for name, problem in zip(asked, said, strict=True) if problem}
    if problems:
        await asyncio.gather(*(_give(child, {"do": "forget"}, _SWAP_SECONDS) for child in asked.values()))
        if len(set(problems.values())) == 1 and len(problems) == len(asked):
            raise ConfigError(next(iter(problems.values())))
        raise ConfigError("; ".join(f"{name}: {problem}" for name, problem in problems.items()))
    commit()
    await asyncio.gather(*(_bring(worker, asked.get(worker.name), order) for worker in workers if _lives(worker)))


async def _bring(worker: Supervised, prepared: Child | None, order: dict[str, Any]) -> None:
    child = worker.child
    problem = "" if child is prepared else await _give(child, order, PREPARE_SECONDS)
    problem = problem or await _give(child, {"do": "swap"}, _SWAP_SECONDS)
    if problem and child is not None and child.status is None:
        _log.error("worker_replaced", name=worker.name, problem=problem, advice="it is started with the new settings")
        child.signal(signal.SIGTERM)


def _lives(worker: Supervised) -> bool:
    return worker.child is not None and worker.child.status is None


async def _give(child: Child | None, order: dict[str, Any], seconds: float) -> str:
    assert child is not None and child.orders is not None
    try:
        return await child.orders.give(order, seconds)
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except ConnectionError:
        return "it has ended meanwhile"
