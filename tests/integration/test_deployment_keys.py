"""Machines that share a database have the same keys, or do not start; an operator may change them on purpose."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from antiphon.app.build import build
from antiphon.config.settings import Settings, load_settings
from antiphon.config.state import StateSettings
from antiphon.entry import main
from antiphon.errors import ConfigError
from antiphon.stores import check_deployment
from antiphon.stores.compatibility import KeyFingerprints
from tests.support.postgres import PostgresServer

OWNER, SEAL, OTHER = "owner-key-canary-" + "o" * 20, "seal-key-canary-" + "s" * 20, "other-key-canary-" + "t" * 20


@pytest.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    url = await postgres.new_database()
    yield url
    await postgres.drop_database(url)


async def admin_keys(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    owner: str,
    seals: str,
    more: tuple[str, ...],
) -> tuple[int, str]:
    monkeypatch.setenv("ANTIPHON_OWNER__KEY", owner)
    monkeypatch.setenv("ANTIPHON_SEALING__KEYS", seals)
    status = await asyncio.to_thread(main, ["admin", "deployment-keys", *more])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


async def test_of_many_that_start_at_once_with_different_keys_one_kind_starts(tmp_path: Path, url: str) -> None:
    state = StateSettings.model_validate({"url": url})
    starts = [check_deployment(state, tmp_path, KeyFingerprints("o", (seal,))) for seal in "ababab"]
    ends = await asyncio.gather(*starts, return_exceptions=True)
    assert sum(one is None for one in ends) == 3
    assert sum(isinstance(one, ConfigError) for one in ends) == 3


async def test_no_key_is_in_the_database_nor_on_the_screen(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANTIPHON_STATE__URL", url)
    monkeypatch.setenv("ANTIPHON_DATA", str(tmp_path))
    status, said = await admin_keys(monkeypatch, capsys, owner=OWNER, seals=f'["{SEAL}"]', more=())
    assert status == 0 and "No process has started" in said
    status, shown = await admin_keys(monkeypatch, capsys, owner=OWNER, seals=f'["{SEAL}"]', more=("--accept",))
    assert status == 0 and "have the keys that the database records" in shown
    status, refused = await admin_keys(monkeypatch, capsys, owner=OTHER, seals=f'["{OTHER}"]', more=())
    assert status == 1 and "owner.key differs" in refused
    # A row for each key, and what each side knows of it.
    assert ["key", "fingerprint", "database", "these", "settings"] in [line.split() for line in refused.splitlines()]
    assert sum("known" in line.split() for line in refused.splitlines()) == 2
    connection = await asyncpg.connect(url)
    kept = str(await connection.fetch("SELECT * FROM deployment"))
    await connection.close()
    for text in (said, shown, refused, kept):
        assert "canary" not in text
    status, told = await admin_keys(monkeypatch, capsys, owner=OTHER, seals=f'["{OTHER}"]', more=("--json",))
    found = json.loads(told)
    assert status == 1 and found["problem"] and "canary" not in told
    assert len(found["keys"]) > 1 and set(found["keys"][0]) == {"key", "fingerprint", "database", "settings"}
    status, said = await admin_keys(monkeypatch, capsys, owner=OTHER, seals=f'["{OTHER}"]', more=("--accept",))
    assert status == 0
    status, said = await admin_keys(monkeypatch, capsys, owner=OWNER, seals=f'["{SEAL}"]', more=())
    assert status == 1
    # Both changes are in the audit, and no comparison is.
    assert await asyncio.to_thread(main, ["admin", "audit", "--json"]) == 0
    audit = capsys.readouterr().out
    noted = [json.loads(line)["action"] for line in audit.splitlines()]
    assert noted == ["deployment-keys --accept"] * 2 and "canary" not in audit


async def test_a_process_with_other_keys_does_not_start(url: str, tmp_path: Path) -> None:
    def settings(owner: str, *seals: str) -> Settings:
        given = {"data": str(tmp_path), "state": {"url": url}, "upstream": {"auth": "none"}}
        return load_settings({**given, "owner": {"key": owner}, "sealing": {"keys": list(seals)}})

    for right in (settings(OWNER, SEAL), settings(OWNER, SEAL, OTHER), settings(OWNER, OTHER, SEAL)):
        await (await build(right, door="http")).aclose()
    for wrong, words in ((settings(OTHER, OTHER, SEAL), "owner.key"), (settings(OWNER, OTHER), "sealing.keys lacks")):
        with pytest.raises(ConfigError, match=words) as told:
            await build(wrong, door="http")
        assert "canary" not in str(told.value)
    with pytest.raises(ConfigError, match=r"owner\.key is not set(.|\n)*sealing\.keys is not set"):
        load_settings({"data": str(tmp_path), "state": {"url": url}, "upstream": {"auth": "none"}})


@pytest.mark.parametrize(("keys", "words"), [([OTHER], "sealing.keys lacks 1"), ([], "sealing.keys is not set")])
async def test_what_is_sealed_at_rest_keeps_out_who_could_not_open_it(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], keys: list[str], words: str
) -> None:
    def given(*seals: str) -> dict[str, Any]:
        state = {"url": url, "seal": True}
        return {"state": state, "door": "http", "owner": {"key": OWNER}, "sealing": {"keys": list(seals)}}

    async def start(*seals: str) -> None:
        settings = {**given(*seals), "data": str(tmp_path), "upstream": {"auth": "none"}}
        await (await build(load_settings(settings), door="http")).aclose()

    await start(SEAL)
    with pytest.raises(ConfigError, match=words):
        await start(*keys)
    # And the operator is told the same before it is tried.
    config = tmp_path / "settings.json"
    for seals, expected in ((keys, True), ([SEAL], False)):
        config.write_text(json.dumps(given(*seals)))
        arguments = ["doctor", "--config", str(config), "--data", str(tmp_path), "--upstream", "http://127.0.0.1:9/v1"]
        await asyncio.to_thread(main, arguments)
        captured = capsys.readouterr()
        said = captured.out + captured.err
        assert (words in said) is expected and "canary" not in said, said


def test_where_machines_share_nothing_there_is_nothing_to_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sessions.db").touch()
    assert main(["admin", "deployment-keys", "--data", str(tmp_path)]) == 2
    assert "needs a PostgreSQL database" in capsys.readouterr().err
