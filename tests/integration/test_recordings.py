"""The recorder and the replayer over real connections: bytes, chunks, cut answers, secrets and refusals."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import resource
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from antiphon.errors import ConfigError
from antiphon.recordings.file import CassetteFile, read_file
from antiphon.recordings.format import CassetteEntry, entry_line, make_entry
from antiphon.recordings.servers import RecordedExchange, Recorder, ReplayedExchange, Replayer
from tests.support.chat_server import (
    ChatServer,
    Close,
    Mark,
    Reset,
    WaitGone,
    answer,
    completion,
    json_answer,
    text_stream,
)
from tests.support.waiting import until

KEY = "sk-a-key-that-is-secret-1234"
CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
STREAM = [("content-type", "text/event-stream")]


@asynccontextmanager
async def served(app: web.Application) -> AsyncIterator[str]:
    """The origin of the application's server."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Got:
    """An answer as a client sees it. `cut` means that it ended too early; without a status, `status` is 0."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunks: list[bytes] = field(default_factory=list)
    cut: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


async def ask(origin: str, body: Any = ASKED, path: str = CHAT, method: str = "POST", **headers: str) -> Got:
    """One request on a new connection. `chunks` has the HTTP chunks of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    got, open_chunk = Got(), b""
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        try:
            async with session.request(method, origin + path, data=data or None, headers=headers) as answered:
                got.status, got.headers = answered.status, {k.lower(): v for k, v in answered.headers.items()}
                part, ended = await answered.content.readchunk()
                # aiohttp's `iter_chunks` never ends for the second answer without a body.
                while part or not answered.content.at_eof():
                    open_chunk += part
                    if ended:
                        got.chunks.append(open_chunk)
                        open_chunk = b""
                    part, ended = await answered.content.readchunk()
        except aiohttp.ClientError:
            got.cut = True
    if open_chunk:
        got.chunks.append(open_chunk)
    got.chunks = [one for one in got.chunks if one]
    return got


@dataclass
class Recording:
    """A running recorder in front of a scripted chat server."""

    origin: str
    chat: ChatServer
    path: Path
    outcomes: list[RecordedExchange]

    async def entries(self, number: int) -> tuple[CassetteEntry, ...]:
        """The entries, after the recorder has reported `number` exchanges."""
        await until(lambda: len(self.outcomes) >= number)
        return read_file(self.path)


@asynccontextmanager
async def recording(folder: Path, change: Callable[[str], str] = str, **options: Any) -> AsyncIterator[Recording]:
    outcomes = list[RecordedExchange]()
    path = folder / "cassette.jsonl"
    async with ChatServer() as chat:
        recorder = Recorder(change(chat.base_url), CassetteFile(path), report=outcomes.append, **options)
        async with served(recorder.app) as origin:
            yield Recording(origin, chat, path, outcomes)


@asynccontextmanager
async def replaying(entries: Any, **options: Any) -> AsyncIterator[tuple[str, list[ReplayedExchange]]]:
    played = list[ReplayedExchange]()
    async with served(Replayer(entries, report=played.append, **options).app) as origin:
        yield origin, played


async def test_a_stream_is_the_same_in_the_original_while_recorded_and_replayed(tmp_path: Path) -> None:
    events = text_stream("Hel", "lo, Zürich")
    # Chunks end anywhere, also within a character.
    body = b"".join(events)
    pieces = [body[at : at + 37] for at in range(0, len(body), 37)]
    headers = [*STREAM, ("x-request-id", "r1"), ("set-cookie", "a=1"), ("set-cookie", "b=2"), ("retry-after", "7")]
    async with recording(tmp_path) as tape:
        tape.chat.script(answer(200, headers, pieces))
        seen = await ask(tape.origin)
        # The end of a chunked answer comes after the entry.
        (entry,) = read_file(tape.path)
        assert seen.status == 200 and seen.chunks == pieces and seen.headers["x-request-id"] == "r1"
        assert [data for _, data in entry.chunks] == pieces and not entry.cut
        assert entry.headers == (("content-type", "text/event-stream"), ("retry-after", "7"))
        (outcome,) = tape.outcomes
        assert (outcome.number, outcome.model, outcome.status, outcome.chunks) == (1, "m", 200, len(pieces))
        assert outcome.note == ""
    async with replaying([entry]) as (origin, played):
        again = await ask(origin, dict(reversed(ASKED.items())))
    assert (again.status, again.chunks, again.cut) == (200, pieces, False)
    assert again.headers["retry-after"] == "7" and "set-cookie" not in again.headers
    assert [(one.number, one.status, one.chunks) for one in played] == [(1, 200, len(pieces))]


async def test_json_answers_and_errors(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        tape.chat.script(json_answer(completion("Hi.")), json_answer({"error": {"message": "slow"}}, status=429))
        first, second = await ask(tape.origin), await ask(tape.origin, {**ASKED, "n": 1})
        entries = await tape.entries(2)
        assert [one.number for one in tape.outcomes] == [1, 2]
        # An upstream may close a kept connection at any moment, and the recorder would take this for a cut answer.
        assert [call.connection for call in tape.chat.requests] == [0, 1]
    async with replaying(entries) as (origin, _):
        assert (await ask(origin, {**ASKED, "n": 1.0})).body == second.body
        again = await ask(origin)
    assert (again.status, again.body, second.status) == (200, first.body, 429)
    assert again.headers["content-length"] == str(len(first.body))


@pytest.mark.parametrize("how", [Reset(), Close()], ids=["reset", "close"])
async def test_a_cut_stream_is_cut_again(tmp_path: Path, how: Any) -> None:
    pieces = text_stream("Hel", "lo")[:2]
    async with recording(tmp_path) as tape:
        tape.chat.script(answer(200, STREAM, [*pieces, how]))
        seen = await ask(tape.origin)
        (entry,) = await tape.entries(1)
        assert seen.cut and entry.cut and tape.outcomes[0].cut
        # A reset may overtake bytes on their way to the recorder.
        assert seen.body == entry.body == b"".join(pieces)[: len(entry.body)]
        if isinstance(how, Close):
            assert seen.chunks == pieces
    for in_time in (False, True):
        async with replaying([entry], in_time=in_time) as (origin, _):
            again = await ask(origin)
        assert (again.status, again.body, again.cut) == (seen.status, seen.body, True)


async def test_an_answer_that_ends_before_its_length_is_cut(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        tape.chat.script(
            answer(200, [("content-type", "application/json")], [b'{"a"', Close()], framing="length", announced=99)
        )
        seen = await ask(tape.origin)
        (entry,) = await tape.entries(1)
    assert seen.cut and entry.cut and entry.body == seen.body == b'{"a"'
    async with replaying([entry]) as (origin, _):
        again = await ask(origin)
    assert (again.status, again.body, again.cut) == (200, b'{"a"', True)


# A busy loop does not stop at the signal of the usual method.
@pytest.mark.timeout(60, method="thread")
async def test_answers_without_a_body_end(tmp_path: Path) -> None:
    # The second such answer in a process once occupied the recorder for ever.
    statuses = (204, 304, 204, 200)
    async with recording(tmp_path) as tape:
        tape.chat.script(*(answer(status, [], framing="length" if status == 200 else "close") for status in statuses))
        for status in statuses:
            seen = await ask(tape.origin, method="OPTIONS" if status == 204 else "POST")
            assert (seen.status, seen.body, seen.cut) == (status, b"", False)
        entries = await tape.entries(len(statuses))
        assert [(one.status, one.body, one.cut) for one in entries] == [(status, b"", False) for status in statuses]
    async with replaying(entries) as (origin, _):
        for status in (204, 204):
            assert (await ask(origin, method="OPTIONS")).status == status


async def test_a_connection_that_ends_without_a_status(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        tape.chat.script(answer(parts=[Close()], framing="none"))
        seen = await ask(tape.origin)
        (entry,) = await tape.entries(1)
    assert (seen.status, seen.cut, entry.status, entry.cut) == (0, True, 0, True)
    async with replaying([entry]) as (origin, _):
        again = await ask(origin)
    assert (again.status, again.cut) == (0, True)


async def test_a_client_that_leaves_is_not_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        sent = asyncio.Event()
        tape.chat.script(answer(200, STREAM, [*text_stream("Hel")[:1], Mark(sent), WaitGone()]))
        leaving = asyncio.create_task(ask(tape.origin))
        await asyncio.wait_for(sent.wait(), 30)
        leaving.cancel()
        call = await tape.chat.received()
        await asyncio.wait_for(call.gone.wait(), 30)
        await until(lambda: tape.outcomes)
        assert tape.outcomes[0].number == 0 and "the client left" in tape.outcomes[0].note
        tape.chat.script(json_answer(completion()))
        await ask(tape.origin)
        assert len(await tape.entries(2)) == 1


async def test_no_credential_is_in_the_file(tmp_path: Path) -> None:
    other, cookie = "another-secret-5678", "cookie-value-that-is-secret"
    async with recording(tmp_path, secrets=(other,)) as tape:
        said = {"error": {"message": f"The key {KEY} and {other} and {cookie} and api-key-value-99 are wrong."}}
        tape.chat.script(json_answer(said, status=401))
        body = {**ASKED, "note": f"{KEY} {other}"}
        headers = {"authorization": f"Bearer {KEY}", "cookie": f"s={cookie}", "api-key": "api-key-value-99"}
        seen = await ask(tape.origin, body, f"{CHAT}?api-version=1&key={KEY}", **headers)
        assert seen.error["message"] == said["error"]["message"]
        call = await tape.chat.received()
        assert (
            call.header("authorization") == f"Bearer {KEY}" and call.json == body and call.path.endswith(f"key={KEY}")
        )
        entries = await tape.entries(1)
        text = tape.path.read_text()
    assert not [one for one in (KEY, other, cookie, "api-key-value-99", "api-version", "127.0.0.1") if one in text]
    assert tape.outcomes[0].note == "a secret was removed"
    assert text.count("[redacted]") == 6 and entries[0].path == CHAT
    # The same client gets the answer, because its key is removed from its request too.
    async with replaying(entries, secrets=(other,)) as (origin, _):
        assert (await ask(origin, body, **headers)).status == 401
        assert (await ask(origin, body)).status == 404


async def test_no_credential_of_a_url_and_no_password_is_in_the_file(tmp_path: Path) -> None:
    path, password = f"{CHAT}?key=a+key%26of-a-query&alt=sse-stream", "a-password-of-anna"
    body = {**ASKED, "note": f"a key&of-a-query {password}"}
    headers = {"authorization": "Basic " + base64.b64encode(f"anna:{password}".encode()).decode()}
    async with recording(tmp_path) as tape:
        tape.chat.script(json_answer({"said": f"a key&of-a-query, a+key%26of-a-query, {password}, sse-stream"}))
        await ask(tape.origin, body, path, **headers)
        entries = await tape.entries(1)
        text = tape.path.read_text()
    assert "of-a-query" not in text and password not in text and "sse-stream" in text
    async with replaying(entries) as (origin, _):
        assert (await ask(origin, body, path, **headers)).status == 200


async def test_no_credential_of_a_path_is_in_the_file_or_in_an_outcome(tmp_path: Path) -> None:
    path, headers = f"/v1/keys/{KEY}/use", {"authorization": f"Bearer {KEY}"}
    async with recording(tmp_path) as tape:
        tape.chat.script(json_answer({"said": "yes"}))
        await ask(tape.origin, path=path, **headers)
        entries = await tape.entries(1)
        (outcome,) = tape.outcomes
        assert (outcome.path, outcome.note) == ("/v1/keys/[redacted]/use", "a secret was removed")
        assert KEY not in tape.path.read_text()
    async with replaying(entries) as (origin, played):
        assert (await ask(origin, path=path, **headers)).status == 200
        missing = await ask(origin, path=f"/v1/others/{KEY}", **headers)
        assert missing.status == 404 and KEY not in missing.error["message"]
        assert all(KEY not in f"{one.path} {one.note}" for one in played)


async def test_an_exchange_that_hides_the_key_is_not_recorded(tmp_path: Path) -> None:
    letters = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
    async with recording(tmp_path) as tape:
        tape.chat.script(
            answer(200, [("content-type", "application/json")], [b'{"k": "%b"}' % letters.encode()]),
            answer(200, [("content-type", "text/plain"), ("content-encoding", "gzip")], [gzip.compress(KEY.encode())]),
        )
        for _ in range(2):
            got = await ask(tape.origin, authorization=f"Bearer {KEY}")
            assert got.status == 200
        await until(lambda: len(tape.outcomes) == 2)
        assert [one.number for one in tape.outcomes] == [0, 0]
        assert "shows a key" in tape.outcomes[0].note and "is compressed" in tape.outcomes[1].note
        assert gzip.decompress(got.body) == KEY.encode()
    assert not tape.path.exists()


async def test_the_recorder_sends_its_key_and_asks_for_plain_answers(tmp_path: Path) -> None:
    async with recording(tmp_path, key=KEY) as tape:
        tape.chat.script(json_answer({"said": KEY}))
        headers = {"authorization": "Bearer none", "accept-encoding": "gzip", "connection": "x-hop", "x-hop": "1"}
        await ask(tape.origin, **headers)
        call = await tape.chat.received()
        assert call.header("authorization") == f"Bearer {KEY}" and call.header("accept-encoding") == "identity"
        assert call.header("x-hop") is None and call.json == ASKED
        await tape.entries(1)
        assert KEY not in tape.path.read_text()


async def test_paths_outside_the_prefix_go_to_the_origin(tmp_path: Path) -> None:
    async with recording(tmp_path, change=lambda url: url.replace("/v1", "/openai/v1")) as tape:
        for path, sent in (("/v1/models?a=b%20c", "/openai/v1/models?a=b%20c"), ("/health", "/openai/health")):
            tape.chat.script(json_answer({}))
            assert (await ask(tape.origin, b"", path, "GET")).status == 200
            assert (await tape.chat.received()).path == sent
        assert [one.path for one in await tape.entries(2)] == ["/v1/models", "/health"]


async def test_an_upstream_that_cannot_be_reached_is_not_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path, change=lambda _: "http://127.0.0.1:9/v1") as tape:
        got = await ask(tape.origin)
        assert got.status == 502 and "Check --upstream" in got.error["message"]
        await until(lambda: tape.outcomes)
    assert "not recorded" in tape.outcomes[0].note and not tape.path.exists()


async def test_a_large_answer_is_passed_on_and_not_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        tape.chat.script(answer(200, STREAM, [b"data: {}\n\n" * 100_000] * 34))
        assert len((await ask(tape.origin)).body) == 34_000_000
        await until(lambda: tape.outcomes)
        assert tape.outcomes[0].number == 0 and "more than 32 MiB" in tape.outcomes[0].note


async def test_a_compressed_request_is_recorded_as_its_content(tmp_path: Path) -> None:
    async with recording(tmp_path) as tape:
        tape.chat.script(json_answer(completion()))
        await ask(tape.origin, gzip.compress(json.dumps(ASKED).encode()), **{"content-encoding": "gzip"})
        call = await tape.chat.received()
        assert call.json == ASKED and call.header("content-encoding") is None
        (entry,) = await tape.entries(1)
    assert json.loads(entry.request) == ASKED


# The replayer.


def _entry(body: Any, said: str, *seconds: float, **values: Any) -> CassetteEntry:
    chunks = [(second, f"data: {said} {second}\n\n".encode()) for second in seconds or (0.0,)]
    return make_entry(json.dumps(body).encode() if body else b"", 200, STREAM, chunks, **values)


async def test_a_request_without_an_answer_is_explained() -> None:
    entries = [_entry(ASKED, "a"), _entry({**ASKED, "messages": [*ASKED["messages"]] * 3, "stream": True}, "b")]
    asked = {**ASKED, "messages": [*ASKED["messages"] * 2, {"role": "user", "content": "ho"}], "stream": True}
    async with replaying(entries) as (origin, played):
        got = await ask(origin, asked)
        other = await ask(origin, asked, "/v1/embeddings")
    assert got.status == 404 and got.headers["content-type"].startswith("application/json")
    error = got.error
    assert error["param"] == "messages[2].content" and error["code"] == "no_recorded_answer"
    assert error["type"] == "invalid_request_error"
    assert 'entry 2. In it \'messages[2].content\' is "hi", but in your request it is "ho"' in error["message"]
    assert f'Recorded requests: 1: POST {CHAT} m "hi"; 2: POST {CHAT} m "hi".' in error["message"]
    assert (
        "No recorded request has the method POST and the path /v1/embeddings." in other.error["message"]
        and other.error["param"] is None
    )
    assert [(one.number, one.status) for one in played] == [(0, 404)] * 2 and "messages[2].content" in played[0].note


async def test_many_entries_are_counted_in_the_error() -> None:
    async with replaying([_entry({**ASKED, "n": number}, "a") for number in range(30)]) as (origin, _):
        got = await ask(origin)
    assert "; and 10 more." in got.error["message"]


async def test_the_same_request_gets_the_answers_in_order() -> None:
    entries = [_entry(ASKED, "1"), _entry(ASKED, "2")]
    for loop, said in ((False, "122"), (True, "121")):
        async with replaying(entries, loop=loop) as (origin, _):
            assert "".join([(await ask(origin)).body.decode()[6] for _ in range(3)]) == said


async def test_models_are_recorded_or_those_of_the_requests() -> None:
    entries = [_entry(ASKED, "a"), _entry({**ASKED, "model": "n"}, "b")]
    async with replaying(entries) as (origin, _):
        made = json.loads((await ask(origin, b"", "/v1/models", "GET")).body)
    assert [one["id"] for one in made["data"]] == ["m", "n"] and made["object"] == "list"
    async with replaying([*entries, _entry(None, "list", method="GET", path="/v1/models")]) as (origin, _):
        assert (await ask(origin, b"", "/v1/models", "GET")).body.startswith(b"data: list")


@pytest.mark.parametrize("in_time", [False, True])
async def test_chunks_are_sent_at_their_times_or_immediately(in_time: bool) -> None:
    now, waits = [100.0], list[float]()

    async def pause(seconds: float) -> None:
        waits.append(round(seconds, 6))
        now[0] += seconds

    entry = _entry(ASKED, "a", 0.25, 0.25, 3.0, 1000.0)
    options = {"in_time": in_time, "pause": pause, "clock": lambda: now[0]}
    async with replaying([entry], **options) as (origin, _):
        got = await ask(origin)
    assert got.chunks == [data for _, data in entry.chunks]
    assert waits == ([0.25, 2.75, 997.0] if in_time else [])


# The file.


def test_a_file_that_exists_is_only_extended_on_request(tmp_path: Path) -> None:
    path = tmp_path / "cassette.jsonl"
    file = CassetteFile(path)
    with pytest.raises(ConfigError, match="another process records to"):
        CassetteFile(path, append=True)
    assert file.append(entry_line(_entry(ASKED, "1"))) == 1
    file.close()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match=r"exists; choose another file, or add entries to it with --append"):
        CassetteFile(path)
    file = CassetteFile(path, append=True)
    assert file.entries == 1 and file.append(entry_line(_entry(ASKED, "2"))) == 2
    file.close()
    assert [one.body[6:7] for one in read_file(path)] == [b"1", b"2"]


def test_a_failed_write_leaves_whole_entries(tmp_path: Path) -> None:
    path = tmp_path / "cassette.jsonl"
    line = entry_line(_entry(ASKED, "1"))
    file = CassetteFile(path)
    file.append(line)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(line) + 10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append(line)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == line and file.append(line) == 2
    file.close()
    assert len(read_file(path)) == 2


def test_files_that_are_no_cassette_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cassette.jsonl"
    line = entry_line(_entry(ASKED, "1"))
    for content, said in (
        (line + line[:-20], r"entry 2 \(line 2\) is not a JSON object"),
        (line[:-1], "has no line end after its last entry"),
        (json.dumps(json.loads(line), indent=1).encode() + b"\n", "has an entry of several lines"),
    ):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            CassetteFile(path, append=True)
        assert path.read_bytes() == content
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="has no entries"):
        read_file(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="not a regular file"):
        CassetteFile(Path("/dev/null"), append=True)
    with pytest.raises(ConfigError, match="No such file"):
        CassetteFile(tmp_path / "none" / "cassette.jsonl")
