"""A key of the data folder that is gone beside a database with rows: no start, and words about what to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from antiphon.app.build import build
from antiphon.app.keys import OWNER_KEY, SEALING_KEY, make_sealer, owner_key
from antiphon.config.settings import Settings, load_settings
from antiphon.config.upstreams import AuthMode, UpstreamSettings
from antiphon.entry import main
from antiphon.errors import ConfigError
from antiphon.stores.sqlite.backend import open_sqlite
from tests.contracts.store_contract import record


def settings(data: Path, **more: object) -> Settings:
    return load_settings({"data": str(data), "upstream": {"auth": "none"}, **more})


async def _use(data: Path, owner: str = "b:alice") -> None:
    """A gateway has been here: its keys are made, and it keeps a response."""
    app = await build(Settings(data=data, upstream=UpstreamSettings(auth=AuthMode.NONE)), door="http")
    await app.aclose()
    stores = await open_sqlite(data, chain_items=10)
    await stores.responses.save(record("kept", owner=owner))
    await stores.aclose()


@pytest.mark.parametrize(("name", "setting"), [(OWNER_KEY, "owner.key"), (SEALING_KEY, "sealing.keys")])
async def test_without_a_key_that_rows_depend_on_nothing_starts(tmp_path: Path, name: str, setting: str) -> None:
    await _use(tmp_path)
    kept = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError) as told:
        await build(settings(tmp_path), door="http")
    for words in (str(tmp_path / name), "is missing", "Restore", f"'{setting}'", "antiphon admin new-keys"):
        assert words in str(told.value)
    assert not (tmp_path / name).exists(), "no key was made in its place"
    (tmp_path / name).write_bytes(kept)
    await (await build(settings(tmp_path), door="http")).aclose()


async def test_the_setting_may_hold_what_the_file_held(tmp_path: Path) -> None:
    await _use(tmp_path)
    given = settings(tmp_path)
    before, sealed = owner_key(given), make_sealer(given).seal("b:alice", "reasoning", b"thoughts")
    keys = {name: (tmp_path / name).read_text() for name in (OWNER_KEY, SEALING_KEY)}
    for name in keys:
        (tmp_path / name).unlink()
    again = settings(tmp_path, owner={"key": keys[OWNER_KEY]}, sealing={"keys": [keys[SEALING_KEY]]})
    assert owner_key(again) == before
    assert make_sealer(again).open("b:alice", "reasoning", sealed) == b"thoughts"


async def test_an_empty_database_makes_keys_as_ever(tmp_path: Path) -> None:
    for _ in range(2):
        app = await build(settings(tmp_path), door="http")
        await app.aclose()
        assert (tmp_path / OWNER_KEY).exists() and (tmp_path / SEALING_KEY).exists()
        (tmp_path / OWNER_KEY).unlink()
        (tmp_path / SEALING_KEY).unlink()


async def test_rows_of_owners_without_a_token_do_not_depend_on_the_owners_key(tmp_path: Path) -> None:
    await _use(tmp_path, owner="anonymous")
    (tmp_path / OWNER_KEY).unlink()
    assert len(owner_key(settings(tmp_path))) == 64


def test_where_no_owner_is_known_by_a_token_there_is_no_key(tmp_path: Path) -> None:
    assert owner_key(settings(tmp_path, owner={"source": "single"})) == b""
    assert not (tmp_path / OWNER_KEY).exists()


async def test_an_operator_can_start_anew_knowing_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await _use(tmp_path)
    command = ["admin", "new-keys", "--data", str(tmp_path)]
    assert (
        await asyncio.to_thread(main, command) == 0
        and "No key of the stored data is missing" in capsys.readouterr().out
    )
    (tmp_path / OWNER_KEY).unlink()
    assert await asyncio.to_thread(main, command) == 1
    assert "could not find their stored data" in capsys.readouterr().out and not (tmp_path / OWNER_KEY).exists()
    assert await asyncio.to_thread(main, [*command, "--yes"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Created new keys: {tmp_path / OWNER_KEY}.") and "could not find" not in said
    assert (tmp_path / OWNER_KEY).stat().st_mode & 0o777 == 0o600
    assert await asyncio.to_thread(main, ["admin", "audit", "--data", str(tmp_path), "--json"]) == 0
    (noted,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (noted["action"], noted["detail"]) == ("new-keys", {"files": [OWNER_KEY]})
    await (await build(settings(tmp_path), door="http")).aclose()


@pytest.mark.parametrize("name", [OWNER_KEY, SEALING_KEY])
async def test_the_doctor_says_what_the_start_would(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await _use(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError) as told:
        await build(settings(tmp_path), door="http")
    command = ["doctor", "--json", "--door", "http", "--upstream", "http://127.0.0.1:9/v1", "--data", str(tmp_path)]
    assert await asyncio.to_thread(main, command) == 1
    found = [one["what"] for one in json.loads(capsys.readouterr().out) if one["verdict"] == "problem"]
    assert str(told.value) in found
    assert not (tmp_path / name).exists(), "no key was made in its place"
    (tmp_path / name).write_text("short")
    assert await asyncio.to_thread(main, command) == 1
    assert f"{tmp_path / name} contains no key" in capsys.readouterr().out
