"""When a settings file has changed, what comes of reading it again, and what a worker answers its parent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from antiphon.commands import reloading
from antiphon.commands.orders import Orders, take_orders
from antiphon.commands.reload_checks import check_change
from antiphon.commands.reloading import Results, SettingsFile, reasons
from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError


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


@pytest.mark.parametrize(
    ("problem", "result"), [(None, "accepted"), (ConfigError("no"), "refused"), (KeyError("a bug"), "refused")]
)
async def test_each_try_is_counted_and_over_for_systemd(
    problem: Exception | None, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[str] = []
    told: list[str] = []
    monkeypatch.setattr(reloading, "tell_manager", told.append)

    async def reload() -> tuple[str, ...]:
        if problem is not None:
            raise problem
        return ("strict",)

    await Results(counted.append).of("SIGHUP", reload())
    assert (counted, told) == ([result], ["RELOADING=1", "READY=1"])


UPSTREAM = {"url": "http://127.0.0.1:1/v1", "api_key": "sk-of-the-upstream"}


@pytest.mark.parametrize(
    ("changes", "door", "problem"),
    [
        ({"strict": True}, "envoy", ""),
        ({"models": [{"match": "a", "model": "b"}]}, "envoy", ""),
        ({"owner": {"api_keys": ["k" * 16]}}, "envoy", ""),
        ({"owner": {"api_keys": []}}, "http", ""),
        ({"owner": {"api_keys": []}, "models": []}, "envoy", "models, owner.api_keys: Envoy's"),
        ({"upstream": {**UPSTREAM, "api_key": "sk-another"}}, "http", ""),
        ({"upstream": {**UPSTREAM, "api_key": "sk-another"}}, "envoy", "upstream.api_key: Envoy's"),
        ({"upstream": {**UPSTREAM, "url": "http://127.0.0.1:2/v1"}, "strict": True}, "envoy", "upstream.url: Envoy's"),
        ({"upstreams": {"a": UPSTREAM}, "models": [{"match": "x", "upstream": "a"}]}, "envoy", "upstreams.a"),
        ({"workers": 2, "strict": True, "data": "/x"}, "http", "workers, data cannot change while it runs"),
        ({"models": [{"match": "a", "profile": "none-such"}]}, "http", "models (a): profile"),
    ],
)
def test_a_change_is_accepted_or_refused_by_name(changes: dict[str, Any], door: str, problem: str) -> None:
    given = {"upstream": UPSTREAM, "models": [{"match": "a"}], "owner": {"api_keys": ["j" * 16]}}
    before, after = load_settings(given), load_settings({**given, **changes})
    if not problem:
        check_change(before, after, envoy=door == "envoy")
        return
    with pytest.raises(ConfigError) as refused:
        check_change(before, after, envoy=door == "envoy")
    assert str(refused.value).startswith(problem)
    assert "sk-" not in str(refused.value)


async def test_an_answer_is_for_the_order_that_it_names() -> None:
    orders = Orders()
    own = socket.socket(fileno=orders.theirs.detach())
    go_on = asyncio.Event()

    async def obey(order: dict[str, Any]) -> str:
        if order["do"] == "wait":
            await go_on.wait()
        return str(order["do"])

    worker = asyncio.ensure_future(take_orders(own, obey))
    with pytest.raises(TimeoutError):
        await orders.give({"do": "wait"}, 0.01)
    go_on.set()
    assert await orders.give({"do": "next"}, 30) == "next"
    worker.cancel()
    await asyncio.wait({worker})
    with pytest.raises(ConnectionError):
        await orders.give({"do": "more"}, 30)
    orders.close()
