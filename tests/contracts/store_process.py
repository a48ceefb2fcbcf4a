"""Runs stores in another process, so that contract tests can run across processes.

Lives here: the child's loop (`python store_process.py`, with calls on standard input and results on standard output),
and the parent's proxy. Not here: the contracts of stores.

Invariant: the child runs the calls of one batch concurrently, and each gets a separate result or exception.
"""

from __future__ import annotations

import asyncio
import copyreg
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO

from antiphon.stores import Stores
from tests.contracts.states import open_state

Call = tuple[str, tuple[Any, ...]]


def child_environment() -> dict[str, str]:
    """The environment in which a child imports what this process imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class StoreProcess:
    """The child process. The child opens and closes stores on request, so that one child serves many tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        )

    async def batch(self, calls: Sequence[Call]) -> list[Any]:
        """Run these calls concurrently. The result of a call that raised is its exception."""
        results: list[Any] = await asyncio.to_thread(self._exchange, calls)
        return results

    async def call(self, name: str, *arguments: Any) -> Any:
        """Run one call. Raises the exception of the call."""
        (result,) = await self.batch([(name, arguments)])
        if isinstance(result, BaseException):
            raise result
        return result

    async def open(self, url: str, data: Path) -> None:
        """Open the stores of this state; `call("aclose")` closes them."""
        await self.call("open", url, str(data))

    def close(self) -> None:
        """Stop the child."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        assert self._child.wait(timeout=20) == 0

    def _exchange(self, calls: Sequence[Call]) -> Any:
        assert self._child.stdin is not None and self._child.stdout is not None
        with self._lock:
            pickle.dump(list(calls), self._child.stdin)
            self._child.stdin.flush()
            return pickle.load(self._child.stdout)


class ProcessStores:
    """The open stores of a `StoreProcess`, by their names in `Stores`: `ProcessStores(process).responses`."""

    def __init__(self, process: StoreProcess) -> None:
        self._process = process

    def __getattr__(self, name: str) -> ProcessPart:
        return ProcessPart(self._process, name)


class ProcessPart:
    """One store of another process."""

    def __init__(self, process: StoreProcess, name: str) -> None:
        self._process = process
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        return lambda *given, **named: self._process.call(f"{self._name}.{method}", *given, {_NAMED: named})


_NAMED = "keyword arguments"
"""The key of the dictionary with a call's keyword arguments, which follows its other arguments."""


def _call(method: Callable[..., Coroutine[Any, Any, Any]], given: tuple[Any, ...]) -> Coroutine[Any, Any, Any]:
    if given and isinstance(given[-1], dict) and _NAMED in given[-1]:
        return method(*given[:-1], **given[-1][_NAMED])
    return method(*given)


class _Pickler(pickle.Pickler):
    """Pickles an exception by its class, `args` and members, because not every constructor accepts its own `args`."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return copyreg.__newobj__, (type(value), *value.args), vars(value)  # type: ignore[attr-defined]
        return NotImplemented


async def _serve(calls: BinaryIO, answers: BinaryIO) -> None:
    stores: Stores | None = None
    while True:
        try:
            batch: list[Call] = await asyncio.to_thread(pickle.load, calls)
        except EOFError:
            break
        if batch[0][0] == "open":
            url, data = batch[0][1]
            stores = await open_state(url, Path(data))
            results: list[Any] = [None]
        else:
            # A name like `responses.save` is a method of one store, and `aclose` closes all stores.
            running = [_call(attrgetter(name)(stores), given) for name, given in batch]
            results = await asyncio.gather(*running, return_exceptions=True)
        _Pickler(answers).dump(results)
        answers.flush()


if __name__ == "__main__":
    asyncio.run(_serve(sys.stdin.buffer, sys.stdout.buffer))
