"""`scripts/record` records what a server answered, in the format of the other recordings, and nothing secret."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from antiphon.commands.demo_upstream import make_app
from antiphon.translation import profiles
from antiphon.translation.profiles import PROFILES, UpstreamProfile
from lab.record import REQUESTS, Answer, data_of, features_of, with_rows
from tests.support.chat_server import ChatServer, answer, completion, json_answer
from tests.support.goldens import render
from tests.support.recordings import all_recordings, recordings_in

# Whole processes and trees; quick tests check the parts.
pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
RECORDINGS = ROOT / "tests" / "recordings"
KEY = "sk-a-key-that-is-secret-1234"


@asynccontextmanager
async def demo_server() -> AsyncIterator[str]:
    """The scripted chat server; its base URL."""
    runner = web.AppRunner(make_app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        await runner.cleanup()


async def record(folder: Path, url: str, *arguments: str) -> tuple[int | None, str]:
    """The program's exit status, and all that it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "lab.record", url, "--provider", "vllm", "--folder", str(folder), *arguments),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"src{os.pathsep}.", "SOME_KEY": KEY},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await process.communicate()
    return process.returncode, printed.decode()


async def test_it_records_every_kind_and_the_goldens_can_replay_it(tmp_path: Path) -> None:
    async with demo_server() as url:
        status, printed = await record(tmp_path, url)
        assert status == 0, printed
        again, printed = await record(tmp_path, url, "--model", "demo")
        assert again == 1 and "exists. Delete it and its row" in printed

    found = {one.name.rpartition("antiphon-demo-")[2]: one for one in recordings_in(tmp_path)}
    assert found.keys() == REQUESTS.keys()
    for kind, recording in found.items():
        assert recording.provider == "vllm" and recording.stream == kind.endswith("-stream")
        assert sum(recording.reads) == (len(recording.body) if recording.stream else 0)
    assert found["unknown-model"].status == 404
    shown = {kind: render(recording) for kind, recording in found.items()}
    assert "response.function_call_arguments.done" in shown["tool-stream"] and "Z\u00fcrich" in shown["text-stream"]
    assert "response.reasoning_text.delta" in shown["reasoning-stream"]
    assert '"reason": "max_output_tokens"' in shown["length-stream"] and '"usage": [' in shown["text"]
    assert shown["unknown-model"].startswith("HTTP 404 error")

    head, *rows = (tmp_path / "INDEX.tsv").read_text().splitlines()
    assert head == (RECORDINGS / "INDEX.tsv").read_text().splitlines()[0]
    assert len(rows) == len(found) and all(len(row.split("\t")) == len(head.split("\t")) for row in rows)
    by_kind = {row.split("\t")[0].rpartition("antiphon-demo-")[2].removesuffix(".json"): row for row in rows}
    assert "\ttext,usage\t" in by_kind["text"] and "tool_call" in by_kind["tool"]
    assert "tool_result_turn" in by_kind["tool-result-stream"] and "reasoning_content" in by_kind["reasoning"]


async def test_the_key_is_in_no_file(tmp_path: Path) -> None:
    """Also where the server repeats it."""
    async with ChatServer() as chat:
        chat.script(json_answer({"error": {"message": f"The key {KEY} is wrong."}}, status=401))
        given = ("--model", "m", "--only", "text", "--key-env", "SOME_KEY")
        status, printed = await record(tmp_path, chat.base_url, *given)
        assert status == 0 and chat.requests[0].header("authorization") == f"Bearer {KEY}"
    (recording,) = recordings_in(tmp_path)
    assert recording.status == 401 and b"[redacted]" in recording.body
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 and KEY not in "".join((*written, printed))


_LETTERS = "".join(f"\\u{ord(letter):04x}" for letter in KEY)


async def test_a_key_that_a_stream_spells_is_removed(tmp_path: Path) -> None:
    chunk = b'data: {"choices":[{"delta":{"content":"%c"}}]}\n\n'
    async with ChatServer() as chat:
        chat.script(
            answer(200, [("content-type", "text/event-stream")], [b"".join(chunk % one for one in KEY.encode())])
        )
        given = ("--model", "m", "--only", "text-stream", "--key-env", "SOME_KEY")
        status, _ = await record(tmp_path, chat.base_url, *given)
    assert status == 0
    (recording,) = recordings_in(tmp_path)
    assert b'"content":"%c"' % KEY.encode()[-1] not in recording.body.replace(b": ", b":")


@pytest.mark.parametrize(
    ("kind", "content_type", "body"),
    [
        ("text", f"application/json; note={KEY}", b"{}"),
        ("text", "application/json", b'{"error": {"message": "%b"}}' % _LETTERS.encode()),
        ("text", "application/json", b'{"%b": 1}' % _LETTERS.encode()),
        ("text", "application/json", b'{"broken": "%b' % _LETTERS.encode()),
        ("text", "application/json", json.dumps({"arguments": f'{{"{_LETTERS}": 1}}'}).encode()),
    ],
)
async def test_an_answer_that_hides_the_key_is_refused(
    tmp_path: Path, kind: str, content_type: str, body: bytes
) -> None:
    async with ChatServer() as chat:
        chat.script(answer(200, [("content-type", content_type)], [body]))
        given = ("--model", "m", "--only", kind, "--key-env", "SOME_KEY")
        status, printed = await record(tmp_path, chat.base_url, *given)
    assert status == 1 and "shows a key" in printed and KEY not in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": 5}',
        b'{"choices": ["x"]}',
        b'{"choices": [{"message": {"tool_calls": 3}}]}',
        b'{"choices": [{"message": {"tool_calls": [{"function": "f"}]}}]}',
        b"[" * 100_000,
    ],
)
async def test_a_malformed_answer_ends_with_a_sentence_or_is_recorded(tmp_path: Path, body: bytes) -> None:
    async with ChatServer() as chat:
        chat.script(answer(200, [("content-type", "application/json")], [body]))
        status, printed = await record(tmp_path, chat.base_url, "--model", "m", "--only", "text")
    assert "Traceback" not in printed
    assert status == (0 if body.startswith(b"[") else 1), printed


async def test_an_endless_answer_is_cut_off(tmp_path: Path) -> None:
    async with ChatServer() as chat:
        chat.script(answer(200, [("content-type", "text/event-stream")], [b"data: {}\n\n" * 100_000] * 40))
        status, printed = await record(tmp_path, chat.base_url, "--model", "m", "--only", "text-stream")
    assert status == 1 and "sent more than 16 MiB for one answer" in printed


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "x" * 201, KEY])
async def test_a_name_that_would_break_the_table_is_refused(tmp_path: Path, name: str) -> None:
    async with ChatServer() as chat:
        chat.script(json_answer({"data": [{"id": name}]}))
        status, printed = await record(tmp_path, chat.base_url, "--key-env", "SOME_KEY")
        assert status == 1 and "The model's name" in printed and KEY not in printed
        status, printed = await record(tmp_path, chat.base_url, "--model", "m", "--licence", "a\tb")
    assert status == 2 and "without tabs and line breaks" in printed


async def test_a_long_list_of_models_is_read_to_its_end(tmp_path: Path) -> None:
    """It comes in many pieces."""
    models = json.dumps({"data": [{"id": f"model-{number}"} for number in range(20_000)]}).encode()
    async with ChatServer() as chat:
        parts = [models[at : at + 50_000] for at in range(0, len(models), 50_000)]
        chat.script(answer(200, [("content-type", "application/json")], parts), json_answer(completion("Hi.")))
        status, printed = await record(tmp_path, chat.base_url, "--only", "text")
    assert status == 0, printed
    (recording,) = recordings_in(tmp_path)
    assert recording.request["model"] == "model-0"


async def test_an_answer_without_reasoning_is_no_recording_of_reasoning(tmp_path: Path) -> None:
    async with ChatServer() as chat:
        chat.script(json_answer(completion("91 is 7 times 13.")))
        status, printed = await record(tmp_path, chat.base_url, "--model", "m", "--only", "reasoning")
    assert status == 0 and "left out reasoning" in printed and recordings_in(tmp_path) == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://127.0.0.1:9/v1", "--model", "m"), "gave no whole answer"),
        (("http://127.0.0.1:9/v1",), "name a model with --model"),
        (("http://user:pass@127.0.0.1:9/v1",), "without a user or a password"),
        (("http://127.0.0.1:9/v1", "--provider", "../x"), "use 1 to 32 of"),
        (("http://127.0.0.1:9/v1", "--key-env", "NOT_SET_ANYWHERE"), "the variable NOT_SET_ANYWHERE is not set"),
    ],
)
async def test_what_cannot_be_recorded_leaves_no_file(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    status, printed = await record(tmp_path, *arguments)
    assert status == 1 and said in printed and list(tmp_path.iterdir()) == []


def test_its_words_are_those_of_the_other_recordings() -> None:
    words = {"usage", "tool_call", "tools_in_request", "reasoning_content", "reasoning", "reasoning_details", "length"}
    rows = [row.split("\t") for row in (RECORDINGS / "INDEX.tsv").read_text().splitlines()[1:]]
    listed = {row[0]: (set(row[4].split(",")), row[5]) for row in rows}
    for one in all_recordings():
        answer = Answer(one.status, "text/event-stream" if one.stream else "application/json", one.body)
        features, chunks = listed[f"chat/{one.name}.json"]
        assert set(features_of(one.request, answer)) & words == features & words, one.name
        assert str(len(data_of(answer))) == chunks, one.name


def test_a_row_stands_among_those_of_its_provider() -> None:
    table = "file\tprovider\nchat/a/x.json\ta\nchat/c/x.json\tc\nresponses/a.json\ta\n"
    rows = ["chat/b/x.json\tb", "chat/c/y.json\tc"]
    assert with_rows(table, rows).splitlines()[1:] == [
        "chat/a/x.json\ta",
        "chat/b/x.json\tb",
        "chat/c/x.json\tc",
        "chat/c/y.json\tc",
        "responses/a.json\ta",
    ]


WITHOUT_PROFILE = {
    "anthropic": "the generic profile fits",
    "crusoe": "the generic profile fits",
    "doubleword": "the generic profile fits",
    "heroku": "the generic profile fits",
    "litellm": "a proxy: what holds depends on what is behind it",
    "mistralrs": "the generic profile fits",
}
"""Recorded servers that have no profile, and why."""


def test_every_profile_of_the_folder_is_in_the_list() -> None:
    for found in pkgutil.iter_modules(profiles.__path__, f"{profiles.__name__}."):
        for name, value in vars(importlib.import_module(found.name)).items():
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, UpstreamProfile) and PROFILES.get(one.name) is not one:
                    pytest.fail(
                        f"{found.name}.{name} has the profile {one.name!r}, and PROFILES lacks it: add it to VENDORS "
                        "in src/antiphon/translation/profiles/vendors.py, under a name that no other profile has"
                    )


def test_every_recorded_server_has_a_profile() -> None:
    recorded = {path.name for path in (RECORDINGS / "chat").iterdir()}
    for name in sorted(recorded - PROFILES.keys() - WITHOUT_PROFILE.keys()):
        pytest.fail(
            f"tests/recordings/chat/{name} has recordings, and there is no profile {name!r}: add a row to "
            "src/antiphon/translation/profiles/vendors.py, or a reason to WITHOUT_PROFILE"
        )
    assert WITHOUT_PROFILE.keys() <= recorded - PROFILES.keys()
