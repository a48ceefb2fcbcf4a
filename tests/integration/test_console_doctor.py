"""The findings of `antiphon doctor` on the console's page of models."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from antiphon.commands.doctor.process_doctor import EnvoyPlace, ProcessDoctor
from antiphon.config.settings import load_settings
from antiphon.engine.ports.findings import DoctorReport
from tests.support.chat_server import ChatServer, Received, completion, json_answer, never
from tests.support.console_app import ConsoleApp, console_settings, open_console_app


@asynccontextmanager
async def checked_console(
    folder: Path, url: str, *, acts: bool = True, envoy: EnvoyPlace = "none", seconds: float = 30.0, **settings: Any
) -> AsyncIterator[ConsoleApp]:
    """A console with the doctor of its process. `url` is the upstream's."""
    own = {"upstream": {"url": url, "auth": "none"}, "door": "http", **settings}
    whole = load_settings(console_settings(folder, acts=acts, settings=own))
    doctor = ProcessDoctor(whole, envoy=envoy, seconds=seconds)
    async with open_console_app(folder, acts=acts, settings=own, doctor=doctor) as console:
        yield console


def chat(request: Received) -> Any:
    """A chat server that rejects the field `logprobs`, with a hostile text."""
    if request.path == "/v1/models":
        return json_answer({"data": [{"id": "m1"}]})
    if request.path != "/v1/chat/completions":
        return json_answer({"error": "no such path"}, 404)
    if request.json.get("logprobs"):
        return json_answer({"error": {"message": "<img src=x onerror=alert(1)> no logprobs"}}, 400)
    return json_answer(completion("Hello"))


async def test_an_operator_runs_the_checks_and_sees_each_finding(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = chat
        async with checked_console(tmp_path, server.base_url) as console:
            before = await console.get("/models", "operator")
            assert "has not run the checks since its start" in before.words and "may cost money" in before.words
            assert not server.requests or all(one.path == "/v1/models" for one in server.requests), "only on request"
            part = await console.post_by_htmx("/models/checks", "operator")
            assert part.status == 200 and "<html" not in part.text
            for found in ("can be written", "database", "can be reached and lists 1 models", "model m1 answers"):
                assert found in part.words
            assert "no logprobs" in part.words and "<img" not in part.text
            assert f"data folder {tmp_path.absolute()}" in part.words
            page = await console.get("/models", "operator")
            assert "0 s ago" in page.words and "no logprobs" in page.words, "the page keeps the findings"
            # The next request of a browser without scripts may reach another process.
            whole = await console.post("/models/checks", "operator")
            assert whole.status == 200 and "<html" in whole.text and "no logprobs" in whole.words
            assert 'action="/console/models/checks#doctor"' in whole.text and 'class="later"' not in whole.text
            assert 'href="/console/models" aria-current="page">' in whole.text


async def test_findings_are_for_operators(tmp_path: Path) -> None:
    async with checked_console(tmp_path, "http://127.0.0.1:9/v1") as console:
        assert (await console.post_by_htmx("/models/checks", "anna")).status == 404
        failed = await console.post_by_htmx("/models/checks", "operator")
        assert (
            "problem" in failed.words and "cannot be reached" in failed.words and "→ Start the server" in failed.words
        )
        assert "Flags in the advice" not in failed.words, "no advice has a flag"
        assert "Checks" not in (await console.get("/models", "anna")).words
        assert (await console.post("/models/checks", "operator", csrf="0" * 64)).status == 403


async def test_flags_in_an_advice_are_explained(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = lambda request: json_answer({"data": []})
        async with checked_console(tmp_path, server.base_url) as console:
            part = await console.post_by_htmx("/models/checks", "operator")
            assert "name a model with --model" in part.words
            assert "Flags in the advice, such as --model , belong to antiphon doctor ." in part.words


async def test_an_operator_who_may_only_read_causes_no_chat_request(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = chat
        async with checked_console(tmp_path, server.base_url, acts=False) as console:
            part = await console.post_by_htmx("/models/checks", "operator")
            assert "lists 1 models" in part.words and "model m1" not in part.words
            assert "the checks send no chat requests" in part.words
            assert {one.path for one in server.requests} == {"/v1/models"}


async def test_an_upstream_that_hangs_ends_the_checks_in_time_and_keeps_the_other_findings(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = lambda request: never()
        async with checked_console(tmp_path, server.base_url, seconds=2.0) as console:
            checking = asyncio.ensure_future(console.post_by_htmx("/models/checks", "operator"))
            await asyncio.sleep(0.2)
            assert (await console.get("/requests", "operator")).status == 200, "the console answers meanwhile"
            part = await checking
            assert "lists" not in part.words and "can be written" in part.words
            assert "did not end within" in part.words or "timed out" in part.words


async def test_two_operators_share_one_run(tmp_path: Path) -> None:
    async with ChatServer() as server:
        server.default = chat
        settings = load_settings(
            console_settings(tmp_path, settings={"upstream": {"url": server.base_url, "auth": "none"}})
        )
        doctor = ProcessDoctor(settings, envoy="none")
        reports = await asyncio.gather(doctor.run(), doctor.run())
        assert isinstance(reports[0], DoctorReport) and reports[0] is reports[1] is doctor.latest
        assert len([one for one in server.requests if one.path == "/v1/models"]) == 1
        cancelled = asyncio.ensure_future(doctor.run())
        await asyncio.sleep(0)
        await doctor.aclose()
        await asyncio.wait({cancelled})
        assert cancelled.cancelled()


async def test_an_envoy_that_another_program_started_is_left_out(tmp_path: Path) -> None:
    async with checked_console(tmp_path, "http://127.0.0.1:9/v1", envoy="elsewhere") as console:
        part = await console.post_by_htmx("/models/checks", "operator")
        assert "did not start the Envoy" in part.words and "Envoy accepts" not in part.words


async def test_a_process_without_a_doctor_shows_no_checks(tmp_path: Path) -> None:
    async with open_console_app(tmp_path) as console:
        assert "Checks" not in (await console.get("/models", "operator")).words
        refused = await console.post("/models/checks", "operator")
        assert refused.status == 404 and "antiphon doctor" in refused.words


@pytest.mark.parametrize("lists", [True, False])
async def test_an_upstream_that_needs_clients_keys_is_no_problem(tmp_path: Path, lists: bool) -> None:
    def guarded(request: Received) -> Any:
        if lists and request.path == "/v1/models":
            return json_answer({"data": [{"id": "m1"}]})
        return json_answer({"error": {"message": "no key"}}, 401)

    async with ChatServer() as server:
        server.default = guarded
        upstream = {"url": server.base_url, "auth": "passthrough"}
        settings = load_settings(
            {"data": tmp_path, "door": "http", "upstream": upstream, "console": {"enabled": True, "act": True}}
        )
        report = await ProcessDoctor(settings, envoy="none").run()
        found = [one for one in report.findings if one.where.startswith("upstream")]
        assert {one.verdict for one in found} <= {"note", "ok"} and "--key-env" in found[-1].advice
