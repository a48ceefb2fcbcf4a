"""`scripts/record URL --provider NAME`: records real answers of a chat server for the tests.

Lives here: the requests, reading an answer, the features of an answer (`features_of`), the files and their rows in
`INDEX.tsv`. Not here: the format of a recording (`src/antiphon/recordings/format.py`), the use of recordings in tests
(`tests/support/recordings.py`, `lab/golden.py`). The format: docs/contributing/recordings.md.

Invariants: The program writes no header but the content type. No file contains the key. The program redacts the plain
key. The program refuses an answer that shows the key in another form (escaped, or split over the chunks of a stream).
The program overwrites no file. The program writes files only when every request has its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from antiphon.recordings import format
from antiphon.recordings.format import Chunks, document_of, make_entry
from antiphon.recordings.scrubbing import event_data, shows, streamed
from antiphon.redaction import without

Object = dict[str, Any]

FOLDER = Path(__file__).parent.parent / "tests" / "recordings"
_SECONDS = 300.0
_MOST_BYTES = 16 << 20
_COLUMNS = (
    "file",
    "provider",
    "model",
    "stream",
    "features",
    "n_chunks",
    "source_repo",
    "licence",
    "provenance",
    "status",
)
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,200}")
_WEATHER: Object = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
_QUESTION = {"role": "user", "content": "What is the weather in Zürich and in Paris? Use the tool."}
_CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    ],
}
_USAGE = {"stream": True, "stream_options": {"include_usage": True}}

REQUESTS: dict[str, Object] = {
    "text": {"messages": [{"role": "user", "content": "Write one short sentence about Zürich."}]},
    "text-stream": {"messages": [{"role": "user", "content": "Write one short sentence about Zürich."}], **_USAGE},
    "tool": {"messages": [_QUESTION], "tools": [_WEATHER]},
    "tool-stream": {"messages": [_QUESTION], "tools": [_WEATHER], **_USAGE},
    "tool-result-stream": {
        "messages": [
            {"role": "user", "content": "What is the weather in Paris?"},
            _CALLED,
            {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees, light rain"},
        ],
        "tools": [_WEATHER],
        **_USAGE,
    },
    "reasoning": {"messages": [{"role": "user", "content": "Is 91 a prime number?"}], "reasoning_effort": "low"},
    "reasoning-stream": {
        "messages": [{"role": "user", "content": "Is 91 a prime number?"}],
        "reasoning_effort": "low",
        **_USAGE,
    },
    "length-stream": {
        "messages": [{"role": "user", "content": "Count from one to fifty, in words."}],
        "max_tokens": 8,
        **_USAGE,
    },
    "unknown-model": {"messages": [{"role": "user", "content": "Hi"}], "model": "no-such-model"},
}
"""The requests, by the end of their file's name. A request without a model uses the model that is being recorded."""

_WORDS = (
    "text",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "think_tags",
    "refusal",
    "tool_call",
    "parallel_tool_calls",
    "split_args",
    "text_then_tool",
    "logprobs",
    "length",
    "n_choices",
    "usage",
    "error",
    "stream_error",
    "multibyte",
    "tools_in_request",
    "tool_result_turn",
)
"""The values of the column `features`, in the order of the column."""
_REASONING = frozenset({"reasoning_content", "reasoning", "reasoning_details", "think_tags"})


class CannotRecord(Exception):
    """A problem that prevents the recording, as a sentence for the user."""


@dataclass(frozen=True)
class Answer:
    """One answer as received. `chunks` has the network reads, each with the seconds since the request."""

    status: int
    content_type: str
    body: bytes
    chunks: Chunks = ()

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of server-sent events."""
        return streamed(self.content_type)


@dataclass(frozen=True)
class Source:
    """The origin of recordings, and the licence for their use."""

    provider: str
    model: str
    licence: str
    day: str
    secrets: tuple[str, ...] = field(default=(), repr=False)


# Features of an answer.


def data_of(answer: Answer) -> list[str]:
    """For a stream, the data of each event except `[DONE]`. For any other answer, the whole body."""
    return event_data(answer.content_type, answer.body)


def features_of(request: Object, answer: Answer) -> list[str]:
    """The features of the answer and of its request, as values of the column `features`. Raises `CannotRecord` if the
    answer does not have the form of Chat Completions."""
    chunks = [one for one in map(_decoded, data_of(answer)) if isinstance(one, dict)]
    try:
        found = set(_of_chunks(chunks, answer.streamed))
    except (AttributeError, TypeError, ValueError):
        raise CannotRecord("An answer is not in the shape of Chat Completions: its fields have other types.") from None
    if answer.status >= 400:
        found.add("error")
    if not answer.body.isascii():
        found.add("multibyte")
    if any(message.get("role") == "tool" for message in request.get("messages") or ()):
        found.add("tool_result_turn")
    if request.get("tools"):
        found.add("tools_in_request")
    return sorted(found, key=_WORDS.index)


def _of_chunks(chunks: list[Object], streamed: bool) -> Iterator[str]:
    text, arguments = "", dict[tuple[int, int], int]()
    for chunk in chunks:
        if chunk.get("error"):
            yield "error"
            if streamed:
                yield "stream_error"
        if chunk.get("usage"):
            yield "usage"
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                yield "n_choices"
                continue
            part = choice.get("delta" if streamed else "message") or {}
            content = part.get("content")
            if isinstance(content, str) and content:
                if not text:
                    yield "text"
                text += content
            yield from (name for name in ("reasoning_content", "reasoning", "reasoning_details") if part.get(name))
            if part.get("refusal"):
                yield "refusal"
            for number, call in enumerate(part.get("tool_calls") or ()):
                yield "tool_call"
                if streamed and text.strip():
                    yield "text_then_tool"
                place = call.get("index", number)
                written = bool((call.get("function") or {}).get("arguments"))
                arguments[0, place] = arguments.get((0, place), 0) + written
            if choice.get("logprobs"):
                yield "logprobs"
            if choice.get("finish_reason") == "length":
                yield "length"
    if "<think>" in text or "</think>" in text:
        yield "think_tags"
    if len(arguments) > 1:
        yield "parallel_tool_calls"
    if any(pieces > 1 for pieces in arguments.values()):
        yield "split_args"


def _decoded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


# Files.


def file_name(source: Source, kind: str) -> str:
    """The path of the recording of this kind, relative to the folder of all recordings."""
    model = re.sub(r"[^a-z0-9]+", "-", source.model.lower()).strip("-")
    return f"chat/{source.provider}/antiphon-{model}-{kind}.json"


def recording_of(source: Source, kind: str, request: Object, answer: Answer) -> Object:
    """The content of a recording's file. Raises `CannotRecord` if the answer is not text, or shows the key."""
    chunks = answer.chunks if answer.streamed and answer.chunks else ((0.0, answer.body),)
    headers = [("content-type", answer.content_type)]
    if shows(answer.content_type, b"", source.secrets):
        raise CannotRecord(f"The content type of the answer to {kind} shows a key. It is not recorded.")
    try:
        entry = make_entry(json.dumps(request).encode(), answer.status, headers, chunks, secrets=source.secrets)
    except format.CannotRecord as error:
        raise CannotRecord(f"The answer to {kind} is not recorded. {error}") from None
    document = document_of(
        entry,
        {
            "provider": source.provider,
            "model": source.model,
            "source": {
                "repo": "antiphon",
                "path": "scripts/record",
                "interaction": list(REQUESTS).index(kind),
                "commit": source.day,
                "licence": source.licence,
            },
            "provenance": "recording",
            "features": features_of(request, answer),
        },
    )
    if "body" not in document:
        raise CannotRecord(f"The answer to {kind} is not UTF-8; a recording for the tests holds text only.")
    return document


def row_of(name: str, recording: Object, chunks: int) -> str:
    """The row of `INDEX.tsv` for a recording with `chunks` events."""
    values = {
        "file": name,
        "provider": recording["provider"],
        "model": recording["model"],
        "stream": int(recording["stream"]),
        "features": ",".join(recording["features"]),
        "n_chunks": chunks,
        "source_repo": recording["source"]["repo"],
        "licence": recording["source"]["licence"],
        "provenance": recording["provenance"],
        "status": recording["status"],
    }
    return "\t".join(str(values[column]) for column in _COLUMNS)


def with_rows(index: str, rows: list[str]) -> str:
    """The table with these rows added, each in its sorted position among the chat recordings."""
    head, *known = index.splitlines() or ["\t".join(_COLUMNS)]
    for row in rows:
        place = next(
            (number for number, one in enumerate(known) if not one.startswith("chat/") or _key(one) > _key(row)),
            len(known),
        )
        known.insert(place, row)
    return "\n".join((head, *known)) + "\n"


def _key(row: str) -> tuple[str, str]:
    file, provider, *_ = row.split("\t")
    return provider, file


def write(folder: Path, recordings: dict[str, tuple[Object, int]]) -> None:
    """Write recordings (each with its number of events) and their rows. Raises `CannotRecord`."""
    for name, (recording, _) in recordings.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
    index = folder / "INDEX.tsv"
    rows = [row_of(name, recording, chunks) for name, (recording, chunks) in recordings.items()]
    index.write_text(with_rows(index.read_text() if index.exists() else "", rows))


# The server.


async def record(url: str, source: Source, kinds: list[str]) -> dict[str, tuple[Object, int]]:
    """Send each kind of request to the server. A request for reasoning whose answer has no reasoning is reported and
    not recorded."""
    found = {}
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    headers = {"authorization": f"Bearer {source.secrets[0]}"} if source.secrets else {}
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        for kind in kinds:
            request = {"model": source.model, **REQUESTS[kind]}
            answer = await ask(session, url, request)
            features = features_of(request, answer)
            if kind.startswith("reasoning") and not _REASONING.intersection(features):
                print(f"left out {kind}: the answer (status {answer.status}) has no reasoning")
                continue
            name = file_name(source, kind)
            found[name] = (recording_of(source, kind, request, answer), len(data_of(answer)))
            print(f"recorded {name}: {answer.status} {','.join(features)}")
    return found


async def ask(session: aiohttp.ClientSession, url: str, request: Object) -> Answer:
    """Send one request. Raises `CannotRecord` if the server cannot be reached or breaks off."""
    started = time.monotonic()
    try:
        # If the server compressed its answer, the recording would have the decompressed bytes with other read lengths.
        async with session.post(
            f"{url}/chat/completions", json=request, headers={"accept-encoding": "identity"}
        ) as got:
            parts = await _parts(got, url, started)
            return Answer(got.status, got.headers.get("content-type", ""), b"".join(data for _, data in parts), parts)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CannotRecord(f"The server at {url} gave no whole answer: {type(error).__name__}.") from None


async def _parts(got: aiohttp.ClientResponse, url: str, started: float = 0.0) -> Chunks:
    """The body in the network reads in which it arrived. Raises `CannotRecord` if the body is too large."""
    parts, size = list[tuple[float, bytes]](), 0
    async for part in got.content.iter_any():
        size += len(part)
        if size > _MOST_BYTES:
            raise CannotRecord(f"The server at {url} sent more than {_MOST_BYTES >> 20} MiB for one answer.")
        parts.append((round(time.monotonic() - started, 6), part))
    return tuple(parts)


async def first_model(url: str, secrets: tuple[str, ...]) -> str:
    """The first model of the server's list. Raises `CannotRecord`."""
    headers = {"authorization": f"Bearer {secrets[0]}"} if secrets else {}
    try:
        async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/models") as got:
            return str(json.loads(b"".join(data for _, data in await _parts(got, url)))["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise CannotRecord(f"The server at {url} lists no models: name a model with --model.") from None


def _one_line(text: str) -> str:
    """The text without tabs and line breaks, for a column of `INDEX.tsv`."""
    if not _LINE.fullmatch(text):
        raise argparse.ArgumentTypeError("use at most 200 characters without tabs and line breaks")
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/record", description="Record answers of a chat server for the tests."
    )
    parser.add_argument("url", metavar="URL", help="base URL of the chat server, with its prefix (/v1)")
    parser.add_argument("--provider", required=True, metavar="NAME", help="folder of the recordings; usually a profile")
    parser.add_argument("--model", help="the model; default: the first of the server's list")
    parser.add_argument("--key-env", metavar="NAME", help="variable with the server's key; default: no key is sent")
    parser.add_argument(
        "--licence", type=_one_line, default="Apache-2.0", help="by which others may use them; default: %(default)s"
    )
    parser.add_argument("--only", action="append", choices=list(REQUESTS), help="only this request; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where they go; default: tests/recordings")
    given = parser.parse_args(arguments)
    try:
        return asyncio.run(_main(given))
    except CannotRecord as error:
        print(f"record: {error}", file=sys.stderr)
        return 1


async def _main(given: argparse.Namespace) -> int:
    url = given.url.rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise CannotRecord("URL must be http:// or https://, without a user or a password. A key goes into --key-env.")
    if not _NAME.fullmatch(given.provider):
        raise CannotRecord(f"--provider {given.provider!r}: use 1 to 32 of a-z, 0-9 and '-'.")
    key = os.environ.get(given.key_env or "", "")
    if given.key_env and not key:
        raise CannotRecord(f"--key-env: the variable {given.key_env} is not set.")
    secrets = (key,) if key else ()
    model = given.model or await first_model(url, secrets)
    if not _LINE.fullmatch(model):
        raise CannotRecord("The model's name has control characters or is longer than 200: name another with --model.")
    if without(model, secrets) != model:
        raise CannotRecord("The model's name shows the key: name another model with --model.")
    source = Source(given.provider, model, given.licence, datetime.now(UTC).date().isoformat(), secrets)
    kinds = given.only or list(REQUESTS)
    there = [name for kind in kinds if (given.folder / (name := file_name(source, kind))).exists()]
    if there:
        raise CannotRecord(f"{there[0]} exists. Delete it and its row in INDEX.tsv first, or use --only.")
    write(given.folder, await record(url, source, kinds))
    print("next: read the files, then run scripts/lab golden and scripts/test tests/golden")
    return 0


if __name__ == "__main__":
    sys.exit(main())
