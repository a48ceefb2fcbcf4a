"""Writes and reads recorded exchanges with a chat server, as one JSON object for each exchange.

An entry is one recorded exchange. This module defines an entry's values and its JSON object with a SHA-256 digest, and
detects damaged entries. A *cassette* is a file with one entry in each line. `file.py` opens files, `scrubbing.py` finds
secrets, and `lab/record.py` writes the rows of `INDEX.tsv`. The page `docs/contributing/recordings.md` describes the
format.

    line = cassette_line(b'{"model": "m"}', 200, [("content-type", "application/json")], [(0.2, b"{}")])
    (entry,) = read_entries(line)

Invariants: `read_entries(entry_line(entry)) == (entry,)` for each entry that `make_entry` returns. An entry holds no
request header, and only the response headers in `KEPT_HEADERS`. `make_entry` refuses an exchange that shows a secret.
The digest covers every other value of the entry, and does not depend on white space or on the order of an object's
keys.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from antiphon.errors import AntiphonError
from antiphon.recordings.scrubbing import Secrets, scrubbed, shows, streamed
from antiphon.redaction import bytes_without, without

Object = dict[str, object]
Chunks = tuple[tuple[float, bytes], ...]
Headers = tuple[tuple[str, str], ...]

CHAT_PATH: Final = "/v1/chat/completions"
REQUEST_BYTES: Final = 64 << 20
"""The maximum size of a recorded request in bytes."""
ANSWER_BYTES: Final = 32 << 20
"""The maximum size of a recorded answer in bytes."""
KEPT_HEADERS: Final = frozenset({"content-type", "retry-after", "retry-after-ms", "x-should-retry"})
"""The only headers that an entry may hold. All are headers of the response."""

_HEADER_CHARACTERS: Final = 1000
_PATH_CHARACTERS: Final = 2000
_SECONDS: Final = 86400.0
_METHOD: Final = re.compile(r"[A-Z]{1,20}")
_PATH: Final = re.compile(r"/[^\x00-\x1f\x7f?]*")
_LINE: Final = re.compile(r"[^\x00-\x1f\x7f]*")
_NAMED: Final = 5


class CannotRecord(AntiphonError):
    """Raised for an exchange that cannot be recorded. The message is a sentence for the user."""


class DamagedRecording(AntiphonError):
    """Raised for a file with damaged entries. The message names the first damaged entries."""


@dataclass(frozen=True)
class CassetteEntry:
    """One exchange. `make_entry` builds it from raw values.

    `request` is the body of the request, as compact JSON if it is JSON. `chunks` has the parts of the answer's body,
    each with the seconds from the request to its arrival. `status` is 0 if the server closed the connection before it
    sent a status. `cut` means that the connection ended before the answer was complete.
    """

    request: bytes
    status: int
    headers: Headers = ()
    chunks: Chunks = ()
    method: str = "POST"
    path: str = CHAT_PATH
    cut: bool = False

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.chunks)

    @property
    def content_type(self) -> str:
        return next((value for name, value in self.headers if name == "content-type"), "")

    @property
    def streamed(self) -> bool:
        """Whether the answer is a stream of server-sent events."""
        return streamed(self.content_type)

    @property
    def model(self) -> str:
        """The requested model. Empty if the request names no model."""
        value = decoded(self.request)
        model = value.get("model") if isinstance(value, dict) else None
        return model if isinstance(model, str) else ""


# Writing.


def make_entry(
    request: bytes,
    status: int,
    headers: Iterable[tuple[str, str]],
    chunks: Sequence[tuple[float, bytes]],
    *,
    method: str = "POST",
    path: str = CHAT_PATH,
    cut: bool = False,
    secrets: Secrets = (),
) -> CassetteEntry:
    """The entry for one exchange, without the secrets and without the headers that a recording must not hold.

    `chunks` are the parts of the answer's body with the seconds from the request to their arrival. The entry leaves out
    empty parts. The entry also leaves out the query of `path`, because a query may hold a credential. Raises
    `CannotRecord` if a body is too large, or if the exchange shows a secret in a form that cannot be removed."""
    parts = tuple((seconds, data) for seconds, data in chunks if data)
    size = sum(len(data) for _, data in parts)
    for length, limit, name in ((len(request), REQUEST_BYTES, "request"), (size, ANSWER_BYTES, "answer")):
        if length > limit:
            raise CannotRecord(f"The {name} has more than {limit >> 20} MiB.")
    entry = CassetteEntry(
        request=normal_request(request, secrets),
        status=status,
        headers=_kept(headers, secrets),
        chunks=scrubbed(parts, secrets),
        method=method,
        path=without(path.partition("?")[0], secrets),
        cut=cut,
    )
    if shows("", entry.request, secrets) or shows(entry.content_type, entry.body, secrets):
        raise CannotRecord("The exchange shows a key in a form that cannot be removed.")
    problem = _problem(entry)
    if problem:
        raise CannotRecord(f"The exchange cannot be recorded: {problem}.")
    return entry


def normal_request(request: bytes, secrets: Secrets) -> bytes:
    """The body of a request without the secrets, as compact JSON if it is JSON."""
    return _compact(bytes_without(_compact(request), secrets))


def entry_line(entry: CassetteEntry, labels: Mapping[str, object] | None = None) -> bytes:
    """The entry as a line of a cassette, with its digest and a line end. `labels` has the meaning that `document_of`
    describes. Raises `CannotRecord`."""
    document = document_of(entry, labels)
    try:
        return _encoded({**document, "sha256": digest_of(document)}) + b"\n"
    except RecursionError:
        raise CannotRecord("The request is nested too deeply.") from None


def document_of(entry: CassetteEntry, labels: Mapping[str, object] | None = None) -> Object:
    """The entry as a JSON object without a digest. `labels` are further values: `provider`, `source`, `provenance` and
    `features`. The object leaves out values that are an entry's defaults."""
    given = dict(labels or {})
    provider, model = given.pop("provider", ""), given.pop("model", entry.model)
    features = {"features": given.pop("features")} if "features" in given else {}
    others = {name: value for name, value in entry.headers if name != "content-type"}
    # If a body arrived as a whole at an unknown time, there are no chunk boundaries to record.
    in_parts = len(entry.chunks) > 1 or any(seconds for seconds, _ in entry.chunks)
    return {
        "provider": provider,
        "model": model,
        **given,
        **({"method": entry.method} if entry.method != "POST" else {}),
        **({"path": entry.path} if entry.path != CHAT_PATH else {}),
        **_request_values(entry.request),
        "status": entry.status,
        "content_type": entry.content_type,
        **({"headers": others} if others else {}),
        "stream": entry.streamed,
        **({"net_chunks": [len(data) for _, data in entry.chunks]} if in_parts else {}),
        **({"net_seconds": [seconds for seconds, _ in entry.chunks]} if in_parts else {}),
        **({"cut": True} if entry.cut else {}),
        **_text_values("body", entry.body),
        **features,
    }


def digest_of(document: Mapping[str, object]) -> str:
    """The SHA-256 digest of an entry's JSON object without its key `sha256`. The digest covers compact ASCII JSON with
    sorted keys."""
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _kept(headers: Iterable[tuple[str, str]], secrets: Secrets) -> Headers:
    found = dict[str, str]()
    for name, value in headers:
        if value and name.lower() in KEPT_HEADERS and len(value) <= _HEADER_CHARACTERS and _LINE.fullmatch(value):
            found.setdefault(name.lower(), without(value, secrets))
    return tuple((name, found[name]) for name in sorted(found))


def _request_values(request: bytes) -> Object:
    if not request:
        return {}
    value = decoded(request)
    if value is not _NOTHING and _encoded(value) == request:
        return {"request": value}
    return _text_values("request", request, plain="request_text")


def _text_values(name: str, data: bytes, *, plain: str = "") -> Object:
    try:
        return {plain or name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


# JSON.


class _Nothing:
    """The type of `_NOTHING`."""


_NOTHING: Final = _Nothing()


def decoded(data: bytes | str) -> object:
    """Return the value of a JSON text. Return `_NOTHING` if the text is not JSON, or has numbers that JSON does not
    have."""
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_number)
    except (ValueError, RecursionError):
        return _NOTHING


def is_json(value: object) -> bool:
    """Whether this result of `decoded` is a JSON value and not `_NOTHING`."""
    return value is not _NOTHING


def _refuse(name: str) -> None:
    raise ValueError(name)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _encoded(value: object) -> bytes:
    """Encode the value as compact JSON in UTF-8. If a text has an unpaired surrogate, the JSON is ASCII with
    escapes."""
    try:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()


def _compact(request: bytes) -> bytes:
    value = decoded(request)
    try:
        return request if value is _NOTHING else _encoded(value)
    except RecursionError:
        return request


# Reading.


def read_entries(data: bytes) -> tuple[CassetteEntry, ...]:
    """The entries of a cassette, or the one entry of a recording in several lines. Raises `DamagedRecording`, which
    names the damaged entries.

    Each line of a cassette needs its digest. A recording in several lines may lack the digest, because people edit such
    files."""
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if lines and not isinstance(decoded(lines[0]), dict) and isinstance(whole := decoded(data), dict):
        try:
            return (entry_of(whole),)
        except ValueError as error:
            raise DamagedRecording(f"The recording is damaged: {error}.") from None
    entries, damaged = list[CassetteEntry](), list[str]()
    for number, line in enumerate(lines, 1):
        try:
            entries.append(_entry_of_line(line))
        except ValueError as error:
            damaged.append(f"entry {number} (line {number}) {error}")
    if damaged:
        more = f"; and {len(damaged) - _NAMED} more" if len(damaged) > _NAMED else ""
        raise DamagedRecording(
            f"{len(damaged)} of {len(lines)} entries are damaged: {'; '.join(damaged[:_NAMED])}{more}. Record them "
            "again, or delete their lines."
        )
    return tuple(entries)


def _entry_of_line(line: bytes) -> CassetteEntry:
    document = decoded(line)
    if not isinstance(document, dict):
        raise ValueError(_why_not_an_object(line))
    if "sha256" not in document:
        raise ValueError("has no sha256")
    return entry_of(document)


def _why_not_an_object(line: bytes) -> str:
    """The reason why `decoded` returns no object for this line."""
    try:
        value = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
    except RecursionError:
        return "is nested too deeply"
    except ValueError:
        return "is not a JSON object, perhaps because its end is missing"
    if isinstance(value, dict):
        return "has a number that is too long, too large or not finite"
    return "is JSON, but not a JSON object"


def entry_of(document: Mapping[str, Any]) -> CassetteEntry:
    """The entry that a JSON object describes. Raises ValueError. Its message continues a sentence that begins with
    "entry"."""
    given = document.get("sha256")
    try:
        intact = given is None or given == digest_of(document)
    except RecursionError:
        intact = False
    if not intact:
        raise ValueError("does not match its sha256")
    try:
        entry = _entry(document)
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError, binascii.Error):
        raise ValueError("has a missing value, or a value of another type") from None
    if problem := _problem(entry):
        raise ValueError(f"is not valid: {problem}")
    return entry


def _entry(document: Mapping[str, Any]) -> CassetteEntry:
    content_type = document.get("content_type") or ("text/event-stream" if document.get("stream") else "")
    headers = {**(document.get("headers") or {}), **({"content-type": content_type} if content_type else {})}
    request = _encoded(document["request"]) if "request" in document else _bytes("request", document, "request_text")
    body = _bytes("body", document, "body")
    sizes = document.get("net_chunks") or ([len(body)] if body else [])
    seconds = document.get("net_seconds") or [0.0] * len(sizes)
    if any(type(size) is not int or size < 1 for size in sizes) or sum(sizes) != len(body):
        raise ValueError("is not valid: 'net_chunks' does not add up to the length of the body")
    if len(seconds) != len(sizes):
        raise ValueError("is not valid: 'net_seconds' and 'net_chunks' have different lengths")
    chunks, at = list[tuple[float, bytes]](), 0
    for size, second in zip(sizes, seconds, strict=True):
        chunks.append((second, body[at : at + size]))
        at += size
    return CassetteEntry(
        request=request,
        status=document["status"],
        headers=tuple((name, headers[name]) for name in sorted(headers)),
        chunks=tuple(chunks),
        method=document.get("method", "POST"),
        path=document.get("path", CHAT_PATH),
        cut=document.get("cut", False),
    )


def _bytes(name: str, document: Mapping[str, Any], plain: str) -> bytes:
    encoded = document.get(f"{name}_base64")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    text: str = document.get(plain, "") if name == "request" else document[plain]
    return text.encode()


def _problem(entry: CassetteEntry) -> str:
    """Describe the problem with the values of an entry. The result is empty if all values are valid."""
    if type(entry.status) is not int or not (200 <= entry.status <= 599 or (entry.status == 0 and entry.cut)):
        return "the status is not a number from 200 to 599"
    if entry.status == 0 and entry.chunks:
        return "an answer without a status has a body"
    if type(entry.cut) is not bool:
        return "'cut' is neither true nor false"
    if not isinstance(entry.method, str) or not _METHOD.fullmatch(entry.method):
        return "the method is not an HTTP method"
    path = entry.path
    if not isinstance(path, str) or len(path) > _PATH_CHARACTERS or not _PATH.fullmatch(path):
        return f"the path is not an absolute path of at most {_PATH_CHARACTERS} characters without a query"
    for name, value in entry.headers:
        if name not in KEPT_HEADERS or not isinstance(value, str) or not _LINE.fullmatch(value):
            return f"the header '{name[:60]}' is not allowed, or its value is not a line of text"
    last = 0.0
    for seconds, _ in entry.chunks:
        if type(seconds) not in (int, float) or not last <= seconds <= _SECONDS:
            return f"the seconds of the chunks decrease, or are not numbers from 0 to {_SECONDS:.0f}"
        last = seconds
    return ""
