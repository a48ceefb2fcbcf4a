"""The console's lists: what a row shows, the address of a filter, and the way back to a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from antiphon.engine.ports.journal import Entry
from tests.integration.test_console import ANNA as KEY
from tests.integration.test_console import TOKEN, place
from tests.support.console_app import ANNA, open_console_app


async def test_a_row_of_a_failure_has_the_status(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        failed: dict[str, Any] = {"outcome": "error", "fault": "upstream", "code": "scripted_failure", "calls": 1}
        await console.app.stores.journal.add([
            Entry("entry_1", ANNA, status=429, response_id="resp_1", age=3.0, **failed),
            Entry("entry_2", ANNA, status=500, response_id="resp_2", age=2.0, **failed),
            Entry("entry_3", ANNA, outcome="completed", status=200, response_id="resp_3", age=1.0),
        ])  # fmt: skip
        words = (await console.get("/requests")).words
        assert "error 429 scripted_failure" in words and "error 500 scripted_failure" in words
        assert "completed 200" not in words


@pytest.mark.parametrize("user", ["anna", "operator"])
async def test_the_address_of_a_filter_has_no_empty_fields(tmp_path: Path, user: Any) -> None:
    async with open_console_app(tmp_path) as console:
        page = await console.get("/requests?text=&outcome=&code=x%26y&since=&failed=1", user)
        assert page.status == 303 and page.header("location") == "/console/requests?code=x%26y&failed=1"
        page = await console.get("/requests?text=&owner=", user)
        assert page.status == 303 and page.header("location") == "/console/requests"
        assert (await console.get("/requests?code=x%26y&failed=1", user)).status == 200
        part = await console.get("/requests?text=&than=", user, fragment=True)
        assert part.status == 200, "a part of a page has no address that a user sees"


async def test_a_background_response_has_one_row_and_counts_once(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        of_one: dict[str, Any] = {"model": "big-model", "response_id": "resp_1"}
        await console.app.stores.journal.add([
            Entry("entry_1", ANNA, outcome="queued", door="drive", age=30.0, **of_one),
            Entry("entry_2", ANNA, outcome="failed", door="background", fault="upstream", age=2.0, **of_one),
        ])  # fmt: skip
        page = await console.get("/requests")
        assert "1-1 of 1" in page.words and 'id="r-entry_2"' in page.text and 'id="r-entry_1"' not in page.text
        assert 'id="r-entry_1"' in (await console.get("/requests?outcome=queued")).text
        assert "big-model 1 1" in (await console.get("/system")).words


async def test_the_filter_of_models_finds_a_model_that_a_glob_disables(tmp_path: Path) -> None:
    models = [{"match": "demo-model"}, {"match": "*-preview", "mode": "disabled"}]
    async with place(tmp_path, models=models) as there:
        path = "/console/models?whole=1&model=gpt-5-preview"
        _, page = await (await there.user(TOKEN)).get(path)
        assert "disabled by models[1] (match: *-preview)" in page and "No model matches" not in page
        _, page = await (await there.user(KEY)).get(path)
        assert "models[1]" not in page and "No model matches" in page
