"""A start while PostgreSQL is away: it waits, it says why, and the wait has an end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import structlog

from antiphon.app.build import build
from antiphon.config.settings import Settings, load_settings
from antiphon.errors import StoreError
from antiphon.stores.postgres.failures import connecting_failed, may_heal, store_error
from tests.support.commands import Command, run_command
from tests.support.postgres import PostgresServer, free_port
from tests.support.waiting import until

LONG = 1000.0
"""Seconds that no test lasts: whoever waits for them is seen."""
WAITS = "waiting_for_database"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    made = PostgresServer(durable=True)
    yield made
    made.close()


class _Away:
    """A database whose server is stopped."""

    def __init__(self, server: PostgresServer, url: str) -> None:
        self._server, self.url, self._back = server, url, False
        server.stop()

    async def come_back(self) -> None:
        if not self._back:
            self._back = True
            await asyncio.to_thread(self._server.start)


@pytest.fixture
async def away(server: PostgresServer) -> AsyncIterator[_Away]:
    made = _Away(server, await server.new_database(empty=True))
    yield made
    await made.come_back()


def _given(url: str, within: float) -> dict[str, Any]:
    state = {"url": url, "start_within": within}
    keys = {"owner": {"key": "o" * 32}, "sealing": {"keys": ["s" * 32]}}
    return {"state": state, **keys, "upstream": {"auth": "none"}, "log": {"format": "json"}}


def _settings(url: str, data: Path, within: float) -> Settings:
    return load_settings({**_given(url, within), "data": str(data)})


@pytest.mark.parametrize(
    ("words", "ready"),
    [
        (("serve", "--listen", "127.0.0.1:0"), "ready: "),
        pytest.param(("extproc",), "serving: ", marks=(pytest.mark.full, pytest.mark.long)),
        pytest.param(
            ("up", "--door", "http", "--listen", "127.0.0.1:0"), "ready: ", marks=(pytest.mark.full, pytest.mark.long)
        ),
        (("migrate", "up"), "postgresql: applied "),
    ],
)
async def test_a_command_waits_for_a_database_that_comes_up_later(
    away: _Away, processes: list[Command], folder: Path, words: tuple[str, ...], ready: str
) -> None:
    config = folder / "settings.json"
    config.write_text(json.dumps(_given(away.url, LONG)))
    started = await run_command(processes, *words, "--config", str(config), "--data", str(folder / "data"))
    await until(lambda: any(WAITS in line for line in started.err), 60)
    assert not started.out
    await away.come_back()
    await started.line(ready)
    assert await started.end(None if words[0] == "migrate" else signal.SIGTERM) == 0, started.err


@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--listen", "127.0.0.1:0"),
        pytest.param(("extproc",), marks=(pytest.mark.full, pytest.mark.long)),
        pytest.param(("up", "--door", "http", "--listen", "127.0.0.1:0"), marks=(pytest.mark.full, pytest.mark.long)),
    ],
)
async def test_a_signal_ends_the_wait(
    away: _Away, processes: list[Command], folder: Path, words: tuple[str, ...]
) -> None:
    config = folder / "settings.json"
    config.write_text(json.dumps(_given(away.url, LONG)))
    started = await run_command(processes, *words, "--config", str(config), "--data", str(folder / "data"))
    await until(lambda: any(WAITS in line for line in started.err), 60)
    began = time.monotonic()
    assert await started.end(signal.SIGTERM) == 0, started.err
    assert time.monotonic() - began < 30


async def test_a_database_that_never_comes_ends_the_start_with_its_cause(tmp_path: Path) -> None:
    url = f"postgresql://nobody@127.0.0.1:{free_port()}/x"
    with structlog.testing.capture_logs() as lines, pytest.raises(StoreError, match="Connection refused"):
        await build(_settings(url, tmp_path, 0.3), door="http")
    (line,) = [line for line in lines if line["event"] == WAITS]
    assert "Connection refused" in line["cause"] and 0 < line["gives_up_in"] <= 0.3


async def test_what_waiting_does_not_mend_ends_a_start_at_once(postgres: PostgresServer, tmp_path: Path) -> None:
    url = f"{postgres.url('not-there')}"
    with structlog.testing.capture_logs() as lines, pytest.raises(StoreError, match="no such database"):
        async with asyncio.timeout(LONG / 10):
            await build(_settings(url, tmp_path, LONG), door="http")
    assert not any(line["event"] == WAITS for line in lines)


def _refused(code: str) -> StoreError:
    error = asyncpg.PostgresError.new({"C": code, "M": "", "S": "FATAL"})
    return store_error("Connecting", error, connecting=True)


@pytest.mark.parametrize(
    ("failure", "heals"),
    [
        (connecting_failed(ConnectionRefusedError(111, "")), True),
        (connecting_failed(TimeoutError()), True),
        (connecting_failed(ConnectionResetError(104, "")), True),
        (connecting_failed(OSError(-2, "Name or service not known")), True),
        (connecting_failed(ConnectionError("rejected SSL upgrade")), False),
        (connecting_failed(PermissionError(13, "")), False),
        (connecting_failed(ValueError("invalid DSN")), False),
        (_refused("57P03"), True),
        (_refused("53300"), True),
        (_refused("28P01"), False),
        (_refused("28000"), False),
        (_refused("42501"), False),
        (_refused("3D000"), False),
    ],
)
def test_which_failures_are_waited_out(failure: StoreError, heals: bool) -> None:
    assert may_heal(failure) is heals, str(failure)
