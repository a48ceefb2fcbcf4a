"""What models cost, and how `antiphon admin usage` tells it."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from antiphon.commands.admin.usage import read_by, read_day, show_usage
from antiphon.config.settings import Settings
from antiphon.config.upstreams import PriceSettings, price_of
from antiphon.engine.ports.usage_sums import FindNames, OwnerName, UsageSum
from antiphon.errors import ConfigError
from antiphon.stores.sqlite.backend import open_sqlite

_PRICE = PriceSettings(model="m*", input=3.0, output=15.0, cached_input=0.3)


def test_cached_input_has_a_price_of_its_own() -> None:
    assert _PRICE.cost(1_000_000, 400_000, 200_000) == round((0.6 * 3 + 0.4 * 0.3 + 0.2 * 15) * 1e6)
    assert PriceSettings(model="m", input=3.0, output=15.0).cost(1000, 400, 10) == 3150


def test_the_first_pattern_that_fits_counts() -> None:
    find = price_of((_PRICE, PriceSettings(model="*", input=0, output=0)))
    assert find("m1") is _PRICE and find("other") is not None and price_of((_PRICE,))("other") is None


def test_prices_are_settings() -> None:
    settings = Settings.model_validate({"prices": [{"model": "m", "input": 1, "output": 2}]})
    assert settings.prices[0].cached_input is None


def test_no_cost_is_below_nothing_or_beyond_all_numbers() -> None:
    # Some upstreams count what they had cached beside the input.
    assert _PRICE.cost(100, 10**9, 0) == 30
    assert PriceSettings(model="m", input=1e9, output=1e9).cost(2**53, 0, 2**53) > 0
    with pytest.raises(ValidationError):
        PriceSettings(model="m", input=1e308, output=0)


async def test_a_count_beyond_all_measure_keeps_no_other_from_being_written(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    try:
        for _ in range(2):
            await stores.usage.add(
                [
                    UsageSum("2026-01-01", "o", "m", "u", 1, 2**80, cost=2**80),
                    UsageSum("2026-01-01", "p", "m", "u", 1, 5, cost=7),
                ]
            )
        o, p = await stores.usage.sums(("owner",))
        (both,) = await stores.usage.sums(())
    finally:
        await stores.aclose()
    assert (o.calls, o.input_tokens, o.cost) == (2, 10**15, 10**15)
    assert (p.calls, p.input_tokens, p.cost) == (2, 10, 14)
    assert both.input_tokens == 10**15 + 10


async def test_a_name_is_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    stores = await open_sqlite(tmp_path, chain_items=10)
    try:
        await stores.usage.add([UsageSum("2026-01-01", "h:\u202eé", "\x1b[2Jm\nforged 1 2", "u", 1)])
    finally:
        await stores.aclose()
    _, text = await _shown(tmp_path, by="owner,model")
    _, line = text.splitlines()
    assert line.startswith("h:\\u202eé  \\x1b[2Jm\\nforged 1 2  ")


async def _shown(tmp_path: Path, owner: str = "", find: FindNames | None = None, **asked: object) -> tuple[int, str]:
    stores = await open_sqlite(tmp_path, chain_items=10)
    try:
        if not await stores.usage.sums(()):
            await stores.usage.add(
                [
                    UsageSum("2026-01-01", "o", "m", "u", 2, 30, 10, 4, 1, cost=1_500_000),
                    UsageSum("2026-01-02", "p", "n", "u", 1, 5, 0, 6, 0, 1, 7, 8, cost=20),
                ]
            )
        flags = {
            "by": "model",
            "since": "",
            "until": "",
            "json": False,
            "csv": False,
            "forget_before": None,
            "yes": False,
            **asked,
        }
        out = io.StringIO()
        return await show_usage(stores.usage, argparse.Namespace(**flags), owner, out, find), out.getvalue()
    finally:
        await stores.aclose()


async def test_the_table(tmp_path: Path) -> None:
    status, text = await _shown(tmp_path)
    first, second, third, note = text.splitlines()
    assert status == 0 and first.split()[:3] == ["model", "calls", "input_tokens"]
    assert second.split() == ["m", "2", "30", "10", "4", "1", "0", "0", "0", "1.500000"]
    assert third.split() == ["n", "1", "5", "0", "6", "0", "1", "7", "8", "0.000020"]
    assert "estimated" in note
    _, exact = await _shown(tmp_path, until="2026-01-01")
    assert "estimated" not in exact


async def test_json_lines(tmp_path: Path) -> None:
    _, text = await _shown(tmp_path, owner="o", by="owner,day", json=True)
    assert json.loads(text) == {
        "day": "2026-01-01",
        "owner": "o",
        "calls": 2,
        "input_tokens": 30,
        "cached_tokens": 10,
        "output_tokens": 4,
        "reasoning_tokens": 1,
        "estimated_calls": 0,
        "estimated_input_tokens": 0,
        "estimated_output_tokens": 0,
        "cost": 1.5,
    }


async def test_an_owner_has_its_name_and_its_team(tmp_path: Path) -> None:
    async def find(owners: Sequence[str]) -> dict[str, OwnerName]:
        assert list(owners) == ["o", "p"]
        return {"o": OwnerName("Anna\x1b", "lab")}

    _, text = await _shown(tmp_path, find=find, by="owner")
    first, second, third, _ = text.splitlines()
    assert first.split()[:4] == ["owner", "owner_name", "team", "calls"]
    assert second.split()[:4] == ["o", "Anna\\x1b", "lab", "2"] and third.split()[:2] == ["p", "1"]
    _, text = await _shown(tmp_path, find=find, by="owner", json=True)
    named, unnamed = map(json.loads, text.splitlines())
    assert (named["owner_name"], named["team"]) == ("Anna\x1b", "lab") and "team" not in unnamed
    # Sums that are not grouped by owner have no names.
    _, text = await _shown(tmp_path, find=find)
    assert "owner_name" not in text


async def test_sums_by_month_and_by_team(tmp_path: Path) -> None:
    async def find(owners: Sequence[str]) -> dict[str, OwnerName]:
        return {"o": OwnerName("anna", "lab"), "q": OwnerName("quinn", "lab")}

    stores = await open_sqlite(tmp_path, chain_items=10)
    try:
        await stores.usage.add(
            [
                UsageSum("2026-01-31", "o", "=m", "u", 1, 30),
                UsageSum("2026-02-01", "o", "=m", "u", 1, 4, cost=1_500_000),
                UsageSum("2026-02-28", "q", "=m", "u", 1, 3),
                UsageSum("2026-02-28", "b:x", "=m", "u", 1, 2),
            ]
        )
    finally:
        await stores.aclose()
    _, text = await _shown(tmp_path, find=find, by="month,team,model", csv=True)
    assert text.splitlines() == [
        "month,team,model,calls,input_tokens,cached_tokens,output_tokens,reasoning_tokens,"
        "estimated_calls,estimated_input_tokens,estimated_output_tokens,cost",
        "2026-01,lab,'=m,1,30,0,0,0,0,0,0,0.000000",
        "2026-02,,'=m,1,2,0,0,0,0,0,0,0.000000",
        "2026-02,lab,'=m,2,7,0,0,0,0,0,0,1.500000",
    ]
    _, text = await _shown(tmp_path, find=find, by="team,owner", json=True)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(one["team"], one["owner"], one["input_tokens"]) for one in lines] == [
        ("", "b:x", 2),
        ("lab", "o", 34),
        ("lab", "q", 3),
    ]
    _, text = await _shown(tmp_path, find=find, by="owner", csv=True)
    assert text.startswith("owner,owner_name,team,calls,") and "\no,anna,lab,2,34," in text
    with pytest.raises(ConfigError, match="--csv and --json"):
        await _shown(tmp_path, csv=True, json=True)


async def test_an_owner_without_usage_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (await _shown(tmp_path, owner="n:nobody"))[0] == 0
    assert "the owner n:nobody has no usage in these days" in capsys.readouterr().err


async def test_old_sums_go_only_when_one_is_sure(tmp_path: Path) -> None:
    assert await _shown(tmp_path, forget_before="2026-01-02") == (
        1,
        "Would delete the sums of all days before 2026-01-02. To delete them, run the command with --yes.\n",
    )
    assert await _shown(tmp_path, forget_before="2026-01-02", yes=True) == (0, "deleted: 1 daily sums\n")


def test_what_is_wrong_is_said() -> None:
    assert read_by("owner, day") == ("owner", "day") and read_by("") == ()
    with pytest.raises(ConfigError, match="--by: hour is not a column; choose from day, month, owner, team, model"):
        read_by("hour")
    with pytest.raises(ConfigError, match=r"--since 1\.2\.: write the day as YYYY-MM-DD"):
        read_day("--since", "1.2.")
