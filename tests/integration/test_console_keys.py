"""The console's view of keys: also those in the settings, and the figures of quotas."""

from __future__ import annotations

import re
from pathlib import Path

from tests.integration.test_console import ANNA, BO, TOKEN, place
from tests.support.console_app import User, open_console_app

SMALL_USE = re.compile(r"[1-9][0-9,]* of 100,000,000, under 1 %")


async def test_keys_in_the_settings_are_listed_and_cannot_be_changed(tmp_path: Path) -> None:
    async with open_console_app(tmp_path, anna={"team": "lab", "models": ["qwen*"]}) as console:
        page = await console.get("/keys", "operator")
        assert "Keys in the settings" in page.words and "No valid keys exist" not in page.words
        assert "anna anna/1 lab qwen* all" in page.words and "bo bo/1 - all all" in page.words
        assert "/rotate" not in page.text and "ant_key-of" not in page.text
        page = await console.get("/keys?owner=n:bo", "operator")
        assert "bo/1" in page.words and "anna/1" not in page.words


async def test_a_small_use_of_a_quota_has_a_figure(tmp_path: Path) -> None:
    # A limit per month: no period ends during the test.
    async with place(tmp_path, quotas={"each_owner": {"tokens_per_month": 100_000_000}}) as there:
        await there.create(ANNA)
        _, page = await (await there.user(ANNA)).get("/console/system")
        assert SMALL_USE.search(page) and 'width="6"' in page
        await there.create(BO)
        _, page = await (await there.user(TOKEN)).get("/console/keys")
        assert SMALL_USE.search(page)


async def test_each_configured_limit_has_a_row(tmp_path: Path) -> None:
    quotas = {
        "each_owner": {"tokens_per_month": 500},
        "owners": {"anna": {"requests_per_minute": 3}},
        "models": {"qwen*": {"parallel_requests": 8}},
    }
    async with open_console_app(tmp_path, settings={"quotas": quotas}) as console:
        pages: tuple[tuple[str, User], ...] = (("/keys", "operator"), ("/system", "anna"))
        for path, user in pages:
            words = (await console.get(path, user)).words
            for limit in ("requests per minute - 0 3", "tokens per month - 0 500"):
                assert f"owner:n:anna {limit}" in words
            assert ("model:qwen* parallel requests - 0 8" in words) is (user == "operator")
        assert "owner:n:anna" not in (await console.get("/system", "bo")).words
        assert "owner:n:bo tokens per month - 0 500" in (await console.get("/system", "bo")).words


async def test_keys_can_be_created_only_if_processes_accept_them(tmp_path: Path) -> None:
    for managed in (False, True):
        settings = {"owner": {"managed_keys": managed}}
        async with open_console_app(tmp_path / str(managed), settings=settings) as console:
            page = await console.get("/keys", "operator")
            assert ("Create a key" in page.words) is managed and ("below" in page.words) is managed
            assert ("No process accepts created keys" in page.words) is not managed
