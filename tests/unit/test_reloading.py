"""When a settings file has changed, what comes of reading it again, and what a worker answers its parent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError
from antiphon.supervisor.changed_settings import (
    ReloadCounts,
    SettingsFile,
    check_change,
    reasons,
    saying_that_a_restart_is_needed,
)
from antiphon.supervisor.worker_orders import Orders, take_orders


def replaced(path: Path) -> None:
    new = path.with_name("new")
    new.write_text("other")
    new.replace(path)


def renamed_link(path: Path) -> None:
    """As Kubernetes does it."""
    data = path.parent / "..data"
    (path.parent / "2").mkdir()
    (path.parent / "2" / path.name).write_text("other")
    (path.parent / "..data_tmp").symlink_to("2")
    (path.parent / "..data_tmp").replace(data)


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (lambda path: path.write_text("another"), True),
        (replaced, True),
        (renamed_link, True),
        (Path.unlink, True),
        (Path.touch, False),
        (lambda path: path.write_text("one"), False),
        (lambda path: None, False),
    ],
    ids=["written", "replaced", "a link renamed over", "gone", "touched", "the same again", "nothing"],
)
def test_another_content_is_a_change(change: Callable[[Path], object], changed: bool, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "a.yaml").write_text("one")
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    file = SettingsFile(tmp_path / "a.yaml")
    assert not file.has_changed()
    # A link is written through, but for one that is taken away.
    change(tmp_path / "a.yaml")
    # It has to keep still first, and is told once.
    assert [file.has_changed() for _ in range(4)] in ([[False, True, False, False]] if changed else [[False] * 4])


def test_what_is_written_in_pieces_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one")
    file = SettingsFile(path)
    for number in range(3):
        path.write_text("two " * (number + 1))
        assert not file.has_changed()
    assert file.has_changed()
    path.write_text("three, which SIGHUP takes")
    file.was_read()
    assert not file.has_changed()


async def test_reasons_come_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("one")
    hangup, told = asyncio.Event(), asyncio.Queue[str]()
    task = asyncio.ensure_future(reasons(hangup, SettingsFile(path), told.put, look=0.01))
    hangup.set()
    assert await told.get() == "SIGHUP"
    path.write_text("two")
    async with asyncio.timeout(30):
        assert await told.get() == "the file has changed"
    task.cancel()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Where a service manager listens; reading waits for nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.setblocking(False)
        listening.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def _told(manager: socket.socket) -> str:
    return manager.recv(100).decode().splitlines()[0]


@pytest.mark.parametrize(
    ("problem", "result"), [(None, "accepted"), (ConfigError("no"), "refused"), (KeyError("a bug"), "refused")]
)
async def test_each_try_is_counted_and_over_for_systemd(
    problem: Exception | None, result: str, manager: socket.socket
) -> None:
    async def reload() -> tuple[str, ...]:
        if problem is not None:
            raise problem
        return ("strict",)

    counts = ReloadCounts()
    await counts.of("SIGHUP", reload())
    assert (counts.last, counts.results[result]) == (result, 1)
    assert [_told(manager) for _ in range(2)] == ["RELOADING=1", "READY=1"]
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_a_process_without_a_parent_says_that_a_restart_is_needed(manager: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    hangup = asyncio.Event()
    with capture_logs() as lines:
        async with saying_that_a_restart_is_needed(hangup, None):
            hangup.set()
            async with asyncio.timeout(30):
                said = [await loop.sock_recv(manager, 100) for _ in range(2)]
                assert [one.split(b"\n")[0] for one in said] == [b"RELOADING=1", b"READY=1"]
    assert [(line["event"], line["because"]) for line in lines] == [("settings_need_a_restart", "SIGHUP")]


UPSTREAM = {"url": "http://127.0.0.1:1/v1", "api_key": "sk-of-the-upstream"}
GIVEN = {"upstream": UPSTREAM, "models": [{"match": "a"}], "owner": {"api_keys": ["j" * 16]}}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, ()),
        ({"strict": True, "owner": {"api_keys": ["k" * 16]}}, ("owner.api_keys", "strict")),
        ({"models": [{"match": "a", "model": "b"}]}, ("models",)),
        ({"upstream": {**UPSTREAM, "api_key": "sk-another"}}, ("upstream.api_key",)),
        ({"upstreams": {"a": UPSTREAM}, "models": []}, ("upstreams", "models")),
        ({"workers": 2, "log": {"level": "debug"}}, ("log.level", "workers")),
        ({"sidecar": {"secret": "s" * 16}, "timeouts": {"drain": 1}}, ("sidecar.secret", "timeouts.drain")),
    ],
)
def test_what_changes_is_named(changes: dict[str, Any], changed: tuple[str, ...]) -> None:
    before, after = (load_settings({**GIVEN, **more}) for more in ({}, changes))
    assert sorted(check_change(before, after)) == sorted(changed)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"strict": True, "listen": "127.0.0.1:1"},
            "listen cannot change while Antiphon runs (clients would lose the address that they use)",
        ),
        ({"data": "/x"}, "data cannot change"),
        ({"door": "http"}, "door cannot change"),
        ({"reload": {"watch": False}}, "reload.watch cannot change"),
        ({"state": {"url": "memory:"}}, "state.url: with 'memory:'"),
    ],
)
def test_what_cannot_change_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_change(load_settings(GIVEN), load_settings({**GIVEN, **changes}))
    assert str(refused.value).startswith(problem)


@pytest.mark.parametrize("name", ["grpc", "http", "model_door"])
def test_workers_cannot_share_a_port(name: str) -> None:
    """Of a setting that stays, too: the next ones would listen there."""
    sidecar = {"secret": "s" * 16, name: "127.0.0.1:9000"}
    before = load_settings({**GIVEN, "sidecar": sidecar})
    with pytest.raises(ConfigError, match=rf"^sidecar\.{name}: the running workers listen on 127\.0\.0\.1:9000"):
        check_change(before, load_settings({**GIVEN, "sidecar": sidecar, "strict": True}))
    check_change(before, load_settings({**GIVEN, "sidecar": {**sidecar, name: "127.0.0.1:9001"}}))


async def test_an_order_is_waited_for_until_it_is_obeyed() -> None:
    orders = Orders()
    own = socket.socket(fileno=orders.theirs.detach())
    obeyed: list[dict[str, Any]] = []
    with pytest.raises(TimeoutError):
        await orders.give("next", 0.01)
    worker = asyncio.ensure_future(take_orders(own, {"next": obeyed.append, "said": obeyed.append}))
    orders.tell({"do": "said"})
    await orders.give("next", 30)
    assert obeyed[0]["do"] == "next"
    worker.cancel()
    await asyncio.wait({worker})
    with pytest.raises(ConnectionError):
        while True:
            await orders.give("next", 30)
    orders.close()
    orders.tell({"do": "said"})
