"""`antiphon doctor` tells what a chat server can do, whichever it is, and what to change."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from antiphon.commands.doctor.checks import examine_sandbox
from antiphon.commands.doctor.upstream_probes import ProbedFeature
from antiphon.commands.doctor.upstream_report import examine, fitting_profile
from antiphon.config.settings import Settings
from antiphon.config.tools import CodeInterpreterSettings
from antiphon.entry import main
from antiphon.local_keys import exposed
from antiphon.tools.code_interpreter.local import Trial
from antiphon.translation.profiles import PROFILES
from tests.support.chat_server import (
    Answer,
    ChatServer,
    Received,
    answer,
    chunk,
    completion,
    event,
    json_answer,
    never,
    text_stream,
)
from tests.support.issuer import AUDIENCE, Issuer, Key
from tests.support.postgres import free_port

CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "get_weather", "arguments": '{"place": "P"}'}}
Refuse = Callable[[dict[str, Any]], str | None]


def chat_server(
    refuse: Refuse = lambda body: None,
    *,
    models: tuple[str, ...] = ("embed-1", "m1"),
    owner: str = "me",
    beside: dict[str, Any] | None = None,
    key: str | None = None,
    message: dict[str, Any] | None = None,
) -> Callable[[Received], Answer]:
    """A chat server that can everything but what `refuse` gives a reason against; `beside` are its own paths."""

    def respond(request: Received) -> Answer:
        if request.path in (beside or {}):
            return json_answer((beside or {})[request.path])
        if key is not None and request.header("authorization") != f"Bearer {key}":
            return json_answer({"error": {"message": "bad key sk-abcdefghijklmnopqrstuvwx"}}, 401)
        if request.path == "/v1/models":
            return json_answer({"data": [{"id": name, "owned_by": owner} for name in models]})
        if request.path != "/v1/chat/completions":
            return json_answer({"error": "no such path"}, 404)
        body = request.json
        if body["model"] not in models:
            return json_answer({"error": {"message": f"no model {body['model']}"}}, 404)
        if (reason := refuse(body)) is not None:
            return json_answer({"error": {"message": reason}}, 400)
        made: dict[str, Any] = dict(message or {})
        if "tools" in body:
            made["tool_calls"] = [CALL]
        if body.get("stream"):
            parts = [event(chunk({"tool_calls": [CALL]}))] if "tools" in body else []
            return answer(parts=[*parts, *text_stream("Hello", usage="stream_options" in body)])
        made_of = completion(made.pop("content", '{"ok": true}' if "response_format" in body else "Hello"), **made)
        if body.get("logprobs"):
            made_of["choices"][0]["logprobs"] = {"content": [{"token": "x"}]}
        return json_answer(made_of)

    return respond


class Report:
    """What the doctor said."""

    def __init__(self, status: int, findings: list[dict[str, str]]) -> None:
        self.status = status
        self.findings = findings

    def line(self, start: str) -> str:
        """The one finding about an upstream that begins so: verdict, what, advice."""
        found = [one for one in self.findings if one["where"].startswith("upstream") and one["what"].startswith(start)]
        assert len(found) == 1, (start, self.findings)
        return " | ".join((found[0]["verdict"], found[0]["what"], found[0]["advice"]))


Doctor = Callable[..., Any]


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the doctor against a URL: settings as YAML, and further arguments."""

    async def run(url: str, *more: str, settings: str = "") -> Report:
        config = tmp_path / "settings.yaml"
        config.write_text(f"door: http\n{settings}")
        arguments = ["doctor", "--json", "--config", str(config), "--data", str(tmp_path / "data")]
        status = await asyncio.to_thread(main, [*arguments, *(("--upstream", url) if url else ()), *more])
        return Report(status, json.loads(capsys.readouterr().out))

    return run


async def test_a_server_that_can_everything(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server(message={"reasoning_content": "hm"})
        report = await doctor(server.base_url, "--images")
        asked = [request.json for request in server.requests if request.method == "POST"]
    for part in ('"developer"', '"image_url"'):
        assert sum(part in json.dumps(body["messages"]) for body in asked) == 1
    assert report.status == 0
    assert report.line("can be reached") == "ok | can be reached and lists 2 models | "
    # The first of the list is no chat model.
    assert report.line("model m1 answers").startswith("ok")
    for name in (
        *("streaming", "usage in streams", "finish_reason in streams", "tools", "tool calls in streams"),
        *("tool_choice required", "a named tool_choice", "parallel_tool_calls", "json_schema", "json_object"),
        *("logprobs", "reasoning_effort", "developer role", "images"),
    ):
        assert report.line(f"{name}: yes").startswith("ok"), name
    assert "(reasoning_content)" in report.line("reasoning that is shown")
    assert report.line("profile generic fits").startswith("ok")
    assert len(asked) <= 16 and all(body["max_tokens"] <= 256 for body in asked)


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Both disks have room, whatever this machine has; or what a test says."""

    def have(free: int = 1 << 40, files: int = 1 << 20) -> None:
        def ask(_: object) -> Any:
            return SimpleNamespace(f_frsize=4096, f_bavail=free // 4096, f_favail=files, f_files=1 << 21)

        monkeypatch.setattr(os, "statvfs", ask)

    have()
    return have


@pytest.mark.parametrize(
    ("owner", "mode", "user", "verdict", "said"),
    [
        (1000, 0o700, 1000, None, ""),
        (1000, 0o775, 1000, None, ""),
        (0, 0o755, 1000, None, ""),
        (0, 0o777, 1000, "note", "lets every user of this machine write"),
        (1000, 0o777, 1000, "note", "lets every user of this machine write"),
        (1001, 0o770, 1000, "note", "belongs to another user (uid 1001)"),
        (1001, 0o700, 0, "note", "belongs to another user (uid 1001)"),
        (1001, 0o1777, 0, "problem", "belongs to another user (uid 1001) and lets every user of this machine write"),
        (1001, 0o777, 1000, "problem", "belongs to another user (uid 1001) and lets every user of this machine write"),
    ],
)
def test_whose_data_folder_it_is(owner: int, mode: int, user: int, verdict: str | None, said: str) -> None:
    found = os.stat_result((stat.S_IFDIR | mode, 0, 0, 1, owner, owner, 0, 0, 0, 0))
    danger = exposed(Path("/data"), found, user)
    assert (danger and danger[0]) == verdict
    assert danger is None or danger[1].startswith(f"data folder /data {said}, so ")


async def test_a_data_folder_in_which_everybody_may_write_is_seen(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o777)
    # As root, the folder can be another user's too.
    if os.geteuid() == 0:
        os.chown(tmp_path / "data", 12345, -1)
    async with ChatServer() as server:
        server.default = chat_server()
        report = await doctor(server.base_url)
    (found,) = [one for one in report.findings if "lets every user of this machine write" in one["what"]]
    assert found["verdict"] == ("problem" if os.geteuid() == 0 else "note")
    assert report.status == (1 if os.geteuid() == 0 else 0)


@pytest.mark.parametrize(
    ("free", "files", "verdict", "said"),
    [
        (2 << 30, 1 << 20, "ok", "2,048 MiB are free"),
        (512 << 20, 1 << 20, "note", "only 512 MiB are free"),
        (2 << 30, 7, "note", ", for 7 files"),
        (1 << 20, 1 << 20, "problem", "the disk is full"),
        (2 << 30, 0, "problem", "the disk has no free inodes for new files"),
    ],
)
async def test_a_disk_that_is_full_or_nearly_is_seen(
    free: int, files: int, verdict: str, said: str, doctor: Doctor, room: Callable[..., None]
) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        room(free, files)
        report = await doctor(server.base_url)
    found = [one for one in report.findings if "are free for" in one["what"]]
    assert [one["verdict"] for one in found] == [verdict, verdict] and all(said in one["what"] for one in found)
    assert "the data folder" in found[0]["what"] and "temporary files" in found[1]["what"]
    assert (report.status == 1) == (verdict == "problem")


async def test_a_part_that_the_settings_want_and_that_is_not_installed(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the import system is told that there is none.
    monkeypatch.setitem(sys.modules, "mcp", None)
    async with ChatServer() as server:
        server.default = chat_server()
        wanted = await doctor(server.base_url)
        unwanted = await doctor(server.base_url, settings="mcp: {enabled: false}\n")
    (found,) = [one for one in wanted.findings if "'mcp' is not installed" in one["what"]]
    assert found["verdict"] == "note" and "mcp" in found["advice"] and wanted.status == 0
    assert not any("'mcp'" in one["what"] for one in unwanted.findings)


async def test_the_keys_of_the_issuer_are_read(doctor: Doctor, tmp_path: Path) -> None:
    async with ChatServer() as server, Issuer(Key("one")) as issuer:
        server.default = chat_server()

        async def told(jwks: str, **more: Any) -> tuple[int, dict[str, str]]:
            jwt = {"issuer": issuer.url, "audience": [AUDIENCE], "jwks": jwks, **more}
            owner = json.dumps({"source": "jwt", "jwt": jwt})
            report = await doctor(server.base_url, "--auth", "none", settings=f"owner: {owner}\n")
            (found,) = [one for one in report.findings if "token issuer" in one["what"] or "ca_file" in one["what"]]
            return report.status, found

        for jwks in ("", f"{issuer.url}/keys?secret=hidden"):
            status, found = await told(jwks)
            assert (status, found["verdict"]) == (0, "ok") and "hidden" not in str(found)
        issuer.status = 500
        status, found = await told("")
        assert (status, found["verdict"]) == (1, "problem") and "503 keys_unavailable" in found["advice"]
        assert f"{issuer.url}/keys: the issuer answers with status 500" in found["what"]
        (tmp_path / "keys.json").write_bytes(b"{}")
        for file, why in (("keys.json", "is not a JSON Web Key Set"), ("none.json", "the file cannot be read")):
            status, found = await told(str(tmp_path / file))
            assert status == 1 and file in found["what"] and why in found["what"]
        assert (await told("", ca_file=str(tmp_path / "none.pem")))[1]["verdict"] == "problem"


async def test_the_report_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        config = tmp_path / "settings.yaml"
        config.write_text("door: http\n")
        arguments = ["doctor", "--config", str(config), "--upstream", server.base_url, "--data", str(tmp_path / "d")]
        assert await asyncio.to_thread(main, arguments) == 0
    shown = capsys.readouterr()
    # A model that does not think is nothing bad, but "all good" would not be said beside a "no".
    assert "reasoning that is shown: no" in shown.out
    assert shown.err == "doctor: nothing to fix, 1 to note\n"
    lines = shown.out.splitlines()
    assert lines[0] == "this machine" and f"upstream default ({server.base_url})" in lines
    assert any(re.match(r"  ok       streaming: yes", line) for line in lines)


async def test_all_good_is_said_where_nothing_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ChatServer() as server:
        server.default = chat_server(message={"reasoning_content": "hm"})
        arguments = ["doctor", "--upstream", server.base_url, "--data", str(tmp_path / "d"), "--door", "http"]
        assert await asyncio.to_thread(main, arguments) == 0
    shown = capsys.readouterr()
    assert shown.err == "doctor: all good\n" and ": no (" not in shown.out


async def test_problems_and_notes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with ChatServer() as server:
        server.default = chat_server(lambda body: "no" if {"stream", "logprobs"} & body.keys() else None)
        arguments = ["doctor", "--upstream", server.base_url, "--data", str(tmp_path / "d"), "--door", "http"]
        assert await asyncio.to_thread(main, arguments) == 1
    shown = capsys.readouterr()
    problems, notes = shown.out.count("\n  problem "), shown.out.count("\n  note ")
    assert problems and notes and shown.err.startswith(f"doctor: {problems} to fix, {notes} to note")


@pytest.mark.parametrize(("auth", "noted"), [("passthrough", True), ("none", False)])
async def test_an_upstream_that_may_get_identity_tokens_is_noted(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    auth: str,
    noted: bool,
) -> None:
    monkeypatch.setenv("ANTIPHON_OWNER__SOURCE", "header")
    monkeypatch.setenv("ANTIPHON_UPSTREAM__AUTH", auth)
    async with ChatServer() as server:
        server.default = chat_server()
        arguments = ["doctor", "--upstream", server.base_url, "--data", str(tmp_path / "d"), "--door", "http"]
        await asyncio.to_thread(main, arguments)
    found = " ".join(capsys.readouterr().out.split())
    assert ("owner.source is header, and auth is passthrough for: default" in found) == noted


async def test_each_finding_is_told_when_it_is_known(tmp_path: Path) -> None:
    """Not all of them at the end, which a server that hangs puts off by a minute for every question."""
    async with ChatServer() as server:
        respond = chat_server()
        server.default = lambda request: respond(request) if request.path == "/v1/models" else never()
        command = (sys.executable, "-m", "antiphon", "doctor", "--upstream", server.base_url, "--door", "http")
        asked = await asyncio.create_subprocess_exec(
            *command, "--data", str(tmp_path / "d"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        assert asked.stdout is not None
        try:
            async with asyncio.timeout(40):
                while b"can be reached and lists 2 models" not in await asked.stdout.readline():
                    pass
            assert asked.returncode is None
        finally:
            asked.kill()
            await asked.wait()


async def test_a_refused_token_limit_is_a_problem_with_its_cure(doctor: Doctor) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        return "Use 'max_completion_tokens' instead." if "max_tokens" in body else None

    async with ChatServer() as server:
        server.default = chat_server(refuse)
        report = await doctor(server.base_url)
        assert report.status == 1
        assert report.line("max_tokens: no").startswith("problem")
        advice = report.line("profile generic sends fields or values that this server refuses: max_tokens")
        suggested = advice.partition("set upstream.profile: ")[2].partition(" ")[0]
        assert PROFILES[suggested].token_limit_field == "max_completion_tokens"
        report = await doctor(server.base_url, settings=f"upstream: {{profile: {suggested}}}\n")
        assert report.status == 0
        assert report.line("max_tokens: the profile").startswith("ok")


async def test_a_server_without_tools_and_formats(doctor: Doctor) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        return "unknown field" if set(body) & {"tools", "response_format", "logprobs"} else None

    async with ChatServer() as server:
        server.default = chat_server(refuse, message={"content": "<think>hm</think>Hello"})
        report = await doctor(server.base_url)
    assert report.status == 0
    assert "--enable-auto-tool-choice" in report.line("tools: no (HTTP 400: unknown field)")
    assert "json_schema, json_object, logprobs" in report.line(
        "profile generic sends fields or values that this server refuses"
    )
    assert "(<think> in the content)" in report.line("reasoning that is shown")


async def test_usage_that_may_not_be_asked_for(doctor: Doctor) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        return "stream_options is unknown" if "stream_options" in body else None

    async with ChatServer() as server:
        server.default = chat_server(refuse)
        report = await doctor(server.base_url)
    assert report.status == 1
    assert report.line("streaming: yes") and report.line("usage in streams: no").startswith("problem")
    assert report.line("profile generic sends").endswith(
        "upstream.profile: databricks (the profile is named after another server, but sends only fields that your "
        "server accepts)"
    )


async def test_a_stream_that_just_ends(doctor: Doctor) -> None:
    def respond(request: Received) -> Answer:
        if request.method == "POST" and request.json.get("stream"):
            return answer(parts=[event("Hel"), event("lo")])
        return chat_server()(request)

    async with ChatServer() as server:
        server.default = respond
        report = await doctor(server.base_url)
    assert "snowflake" in report.line("finish_reason in streams: no")


async def test_lm_studio_is_known_by_its_own_paths_and_its_profile_fits(doctor: Doctor) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        if isinstance(body.get("tool_choice"), dict):
            return "Invalid tool_choice type: 'object'. Supported string values: none, auto, required"
        if body.get("response_format", {}).get("type") == "json_object":
            return "'response_format.type' must be 'json_schema' or 'text'"
        return None

    async with ChatServer() as server:
        server.default = chat_server(refuse, beside={"/api/v0/models": {"data": []}})
        report = await doctor(server.base_url)
        assert "looks like LM Studio" in report.line("profile generic sends")
        assert report.line("profile generic sends").endswith("set upstream.profile: lmstudio")
        report = await doctor(server.base_url, settings="upstream: {profile: lmstudio}\n")
    assert report.line("profile lmstudio fits").startswith("ok")
    assert "the profile lmstudio does not use this feature" in report.line("json_object: no")


@pytest.mark.parametrize(
    ("profile", "signs"),
    [
        ("ollama", {"beside": {"/api/version": {"version": "0.12.3"}}}),
        ("vllm", {"beside": {"/version": {"version": "0.11.0"}}}),
        ("sglang", {"beside": {"/server_info": {"model_path": "x", "version": "0.5", "dtype": "auto"}}}),
        ("llamacpp", {"beside": {"/props": {"default_generation_settings": {}, "total_slots": 1}}}),
        ("tgi", {"beside": {"/info": {"model_id": "x", "max_total_tokens": 4096}}}),
    ],
)
async def test_what_the_server_is(doctor: Doctor, profile: str, signs: dict[str, Any]) -> None:
    async with ChatServer() as server:
        server.default = chat_server(**signs)
        report = await doctor(server.base_url)
    assert report.line("profile generic is not the best profile for this server").endswith(
        f"set upstream.profile: {profile}"
    )
    assert report.status == 0


@pytest.mark.parametrize(("owner", "profile"), [("library", "ollama"), ("vllm", "vllm"), ("llamacpp", "llamacpp")])
async def test_a_server_that_names_itself_has_its_profile_as_when_it_is_served(
    doctor: Doctor, owner: str, profile: str
) -> None:
    def refuse(body: dict[str, Any]) -> str | None:
        return "tool_choice must be a string" if isinstance(body.get("tool_choice"), dict) else None

    async with ChatServer() as server:
        server.default = chat_server(refuse if profile == "llamacpp" else lambda body: None, owner=owner)
        report = await doctor(server.base_url)
        assert (
            report.line(f"profile {profile}")
            == f"ok | profile {profile} fits (the server's list of models indicates this profile) | "
        )
        report_of_one_that_is_named = await doctor(server.base_url, "--profile", "generic")
    assert report_of_one_that_is_named.line("profile generic").endswith(f"set upstream.profile: {profile}")
    if profile == "llamacpp":
        assert report.line("a named tool_choice").startswith("ok | a named tool_choice: the profile")
        assert not any(one["lacking"] for one in report.findings if "tool_choice" in one["what"])


async def test_a_prefix_that_may_be_wrong_is_asked_about(doctor: Doctor) -> None:
    question = "is the prefix of upstream.url right (…/v1)?"
    async with ChatServer() as server:
        server.default = chat_server()
        for more in ((), ("--model", "m1")):
            report = await doctor(server.url("/v2"), *more)
            start = "model m1 does not answer" if more else "no model to probe"
            end = question if more else f"{question} If it is, name a model with --model"
            assert report.status == 1 and report.line(start).endswith(end)

        def unlisted(request: Received) -> Answer:
            return json_answer({}, 404) if request.path == "/v1/models" else chat_server()(request)

        server.default = unlisted
        report = await doctor(server.base_url, "--model", "m1")
    assert report.status == 0 and question not in json.dumps(report.findings, ensure_ascii=False)


async def test_the_signs_are_looked_for_without_the_key(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server(key="the-right-key")
        report = await doctor(server.base_url, settings="upstream: {api_key: the-right-key}\n")
        assert report.status == 0
        for request in server.requests:
            assert (request.header("authorization") is not None) == request.path.startswith("/v1/")


async def test_credentials_are_asked_for_and_never_shown(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ChatServer() as server:
        server.default = chat_server(key="right")
        report = await doctor(server.base_url)
        assert report.status == 1 and "--key-env NAME" in report.line("refuses the credentials: HTTP 401: bad key")
        assert "sk-abcdef" not in json.dumps(report.findings)
        report = await doctor(server.base_url, settings="upstream: {api_key: wrong-key-of-mine}\n")
        assert "upstream.api_key is wrong" in report.line("refuses the credentials")
        assert "wrong-key-of-mine" not in json.dumps(report.findings)
        monkeypatch.setenv("MY_KEY", "right")
        assert (await doctor(server.base_url, "--key-env", "MY_KEY")).status == 0


async def test_nobody_there(doctor: Doctor) -> None:
    async with ChatServer() as server:
        url = server.base_url
    report = await doctor(url)
    assert report.status == 1 and "usually ends in /v1" in report.line("cannot be reached")


async def test_a_host_that_does_not_exist(doctor: Doctor) -> None:
    report = await doctor("http://nowhere.invalid/v1")
    assert report.status == 1 and "check the host name" in report.line("cannot be reached")


async def test_https_to_a_server_that_speaks_http(doctor: Doctor) -> None:
    async with ChatServer() as server:
        # This one waits for more; others hang up.
        url = server.base_url.replace("http:", "https:")
        report = await doctor(url, settings="timeouts: {connect: 0.1}\n")
    assert report.status == 1 and "another scheme" in report.line("cannot be reached")


async def test_a_forgotten_v1(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        report = await doctor(server.url(""), "--model", "m1")
    assert report.status == 1 and report.line("model m1 does not answer").endswith("/v1")


async def test_a_model_that_is_not_there(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        report = await doctor(server.base_url, "--model", "m2")
    assert report.status == 1 and "listed: embed-1, m1" in report.line("model m2 does not answer")


async def test_no_model_at_all(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server(models=())
        report = await doctor(server.base_url)
    assert report.status == 1 and "--model" in report.line("no model to probe")


async def test_an_upstream_that_answers_nonsense(doctor: Doctor) -> None:
    def respond(request: Received) -> Answer:
        return json_answer(["what"]) if request.method == "POST" else chat_server()(request)

    async with ChatServer() as server:
        server.default = respond
        report = await doctor(server.base_url)
    assert report.status == 1 and "HTTP 200, but no completion" in report.line("model m1 does not answer")


async def test_a_rate_limit_is_no_refusal(doctor: Doctor) -> None:
    def respond(request: Received) -> Answer:
        if request.method == "POST" and "response_format" in request.json:
            return json_answer({"error": {"message": "slow down"}}, 429)
        return chat_server()(request)

    async with ChatServer() as server:
        server.default = respond
        report = await doctor(server.base_url)
    assert report.line("json_schema: no (HTTP 429: slow down)").startswith("note")
    assert report.line("profile generic fits").startswith("ok")


async def test_the_upstream_of_a_model_and_its_name_there(doctor: Doctor) -> None:
    async with ChatServer() as one, ChatServer() as other:
        one.default = other.default = chat_server()
        settings = (
            f"upstreams: {{other: {{url: '{other.base_url}', profile: vllm}}}}\n"
            "models: [{match: mine, upstream: other, model: m1}, {match: gone, mode: disabled}]\n"
        )
        report = await doctor(one.base_url, "--model", "mine", settings=settings)
        assert not one.requests and {request.json["model"] for request in other.requests if request.body} == {"m1"}
        assert report.status == 0 and report.line("profile vllm fits")
        report = await doctor(one.base_url, "--model", "gone", settings=settings)
        assert report.status == 1 and not one.requests
        report = await doctor(one.base_url, settings=settings)
        assert one.requests and report.status == 0


async def test_advice_names_the_setting_of_the_upstream_that_it_is_about(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        settings = (
            f"upstreams: {{other: {{url: 'http://127.0.0.1:{free_port()}/v1'}}}}\n"
            "models: [{match: mine, upstream: other}]\n"
        )
        report = await doctor(server.base_url, "--model", "mine", settings=settings)
    assert report.status == 1 and "correct upstreams.other.url" in report.line("cannot be reached")


async def test_a_native_upstream_is_only_reached(doctor: Doctor) -> None:
    async with ChatServer() as server:
        server.default = chat_server()
        report = await doctor(server.base_url, "--model", "m1", settings="models: [{match: m1, mode: native}]\n")
        assert [request.method for request in server.requests] == ["GET"]
    assert report.status == 0 and report.line("has the Responses API itself")


async def test_a_silent_server_does_not_hold_the_doctor_for_ever() -> None:
    async with ChatServer() as server:
        server.default = lambda request: never()
        settings = Settings.model_validate({"upstream": {"url": server.base_url}})
        (found,) = [one async for one in examine(settings, None, "", images=False, seconds=0.05)]
    assert found.verdict == "problem" and found.what == "did not answer within 0.05 seconds"


# Whose profile fits


@pytest.mark.parametrize(
    ("trial", "verdict", "said"),
    [
        (Trial("", "memory"), "ok", "in memory with a fixed size"),
        (Trial("", "counted"), "note", "small files"),
        (Trial("the kernel has no Landlock"), "problem", "no Landlock"),
    ],
)
async def test_what_holds_code_in_is_said(tmp_path: Path, trial: Trial, verdict: str, said: str) -> None:
    async def try_out(python: str, folder: Path) -> Trial:
        return trial

    chosen = CodeInterpreterSettings(sandbox="local")
    (found,) = [one async for one in examine_sandbox(Settings(data=tmp_path, code_interpreter=chosen), try_out)]
    assert found.verdict == verdict and said in found.what
    assert [one async for one in examine_sandbox(Settings(data=tmp_path))] == []


def _refused(*names: str) -> list[ProbedFeature]:
    return [ProbedFeature(name, False, "", refused=True) for name in names]


def test_the_current_profile_stays_while_nothing_is_refused() -> None:
    current = PROFILES["vllm"]
    assert (
        fitting_profile(
            [ProbedFeature("logprobs", False, "the server accepts the field, but its answer has no log probabilities")],
            current,
        )
        is current
    )


def test_the_profile_that_leaves_out_all_that_is_refused_fits() -> None:
    for names in (("logprobs",), ("a named tool_choice",), ("json_schema",), ("parallel_tool_calls", "max_tokens")):
        fitting = fitting_profile(_refused(*names), PROFILES["generic"])
        assert fitting is not PROFILES["generic"]
        assert fitting_profile(_refused(*names), fitting) is fitting


def test_the_server_that_says_what_it_is_goes_first_unless_it_is_worse() -> None:
    assert fitting_profile([], PROFILES["generic"], "ollama") is PROFILES["ollama"]
    assert fitting_profile(_refused("logprobs"), PROFILES["groq"], "vllm") is PROFILES["groq"]


def test_a_path_that_the_system_refuses_is_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--door", "http", "--upstream", "http://127.0.0.1:1/v1", "--json", "--data", "a" * 300]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert sum("cannot be used: File name too long" in one["what"] for one in findings) >= 1
    # The rest is still looked at.
    assert any(one["where"].startswith("upstream") for one in findings)
