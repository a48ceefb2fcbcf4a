"""The console lists refused requests: all of them to operators, and to an owner its own."""

from __future__ import annotations

from pathlib import Path

from antiphon.engine.exchange.failure import Failure
from antiphon.engine.ports.callers import NO_CALLER, Caller
from tests.support.console_app import ANNA, ConsoleApp, User, open_console_app

_LISTS = ("/live", "/requests")


async def _refused(console: ConsoleApp) -> None:
    telemetry = console.app.context.telemetry
    wrong = Failure("client", "Incorrect API key provided.", 401, "invalid_api_key")
    for number in range(30):
        telemetry.refused("http", f"req_{number}", NO_CALLER, "/v1/responses", wrong, wrong.cause)
    full = Failure("client", "Too many requests.", 429, "too_many_requests", counted=True)
    telemetry.refused("http", "req_anna", Caller(ANNA, "anna"), "/v1/files", full, full.cause)
    journal = console.app.journal
    assert journal is not None
    await journal.recorder.aclose()


async def test_only_operators_see_refusals_of_unknown_owners(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        for path in _LISTS:
            page = (await console.get(path, "operator")).words
            assert "refused 401 invalid_api_key" in page and "/v1/responses" in page
            assert "refused 401 invalid_api_key \N{MULTIPLICATION SIGN} 20" in page
            assert "refused 429 too_many_requests /v1/files anna" in page
            users: tuple[User, ...] = ("anna", "bo")
            for user in users:
                words = (await console.get(path, user)).words
                assert "invalid_api_key" not in words and ("429" in words) is (user == "anna")


async def test_a_search_finds_refused_requests_by_their_path(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        page = (await console.get("/requests?text=v1/files", "operator")).words
        assert "/v1/files anna" in page and "/v1/responses" not in page


async def test_the_page_of_refused_requests_says_how_many_they_are(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        await _refused(console)
        page = await console.get("/requests/req_29", "operator")
        assert page.status == 200 and "This row counts 20 requests" in page.words and "path /v1/responses" in page.words
        assert "Path and id are those of the newest." in page.words and "Antiphon refused the request" in page.words
        assert "owner.keys or owner.api_keys" in page.words and "what to change" not in page.words
        assert (await console.get("/requests/req_29", "anna")).status == 404
