"""Converts content parts of Responses items into chat content.

This module converts strings and parts, in messages and in tool outputs. The module also lists the files to which the
parts refer, and decides which of these files may be missing. `messages.py` builds the messages, and
`engine/running/loading.py` fetches and reads files.

Invariant: the conversion copies text as raw JSON and never decodes it. If Chat Completions has no equivalent of a part,
the client gets a 400 that names the part.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from antiphon.errors import (
    ApiError,
    InvalidRequest,
    invalid_parameter,
    invalid_type,
    invalid_value,
    missing_parameter,
    mutually_exclusive,
    unsupported_parameter,
)
from antiphon.translation.chat.foreign_items import ENCRYPTED_OUTPUT
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.checks import known_choice, read_value, required
from antiphon.types.file_kinds import BYTES, FIRST_BYTES, FetchedFile, image_type, is_text
from antiphon.types.items import InputItem, InputPart, KnownPart
from antiphon.types.json import ABSENT, encode, first, fragment_of, given, quoted, try_decode
from antiphon.types.tolerance import Tolerance
from antiphon.types.views import ChatImage, FilePart, StoredParts

_PARTS: Final = msgspec.json.Decoder(list[InputPart])
_KNOWN_PARTS: Final = msgspec.json.Decoder(list[KnownPart])
_OBJECTS: Final = msgspec.json.Decoder(list[dict[str, Raw]])
_NO_EFFECT: Final = frozenset({"prompt_cache_breakpoint"})
_MEMBERS: Final = _NO_EFFECT | frozenset(KnownPart.__struct_fields__)
_EMPTY: Final = Raw(b'""')
_IMAGES: Final = ("input_image", "image_url", "computer_screenshot")
_TEXT: Final = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
KNOWN_PARTS: Final = frozenset({*_IMAGES, *_TEXT, "refusal", "input_file", "input_audio"})
"""Every type that a content part may have. Some types come from Chat Completions, or from items that models make."""


_CHAT_IMAGE: Final = msgspec.json.Decoder(ChatImage)
_ENDINGS: Final = {
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}
_DETAILS: Final = ("low", "high", "auto", "original")


class ContentRules:
    """The rules for converting the content of messages. `profile` is the upstream's profile. `files` are the files that
    Antiphon has fetched by URL or read by id.

    `sent` records the paths of the first image and the first audio part, because not every model accepts images and
    audio. `tolerance` decides whether unknown parts are ignored or refused.
    """

    __slots__ = ("files", "profile", "sent", "tolerance")

    def __init__(
        self,
        profile: UpstreamProfile,
        files: Mapping[str, FetchedFile | ApiError],
        sent: dict[str, str] | None = None,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.profile = profile
        self.files = files
        self.sent = sent
        self.tolerance = Tolerance() if tolerance is None else tolerance

    def known(self, where: str, content: Raw) -> list[tuple[str, InputPart]]:
        """Return the parts of known types, each with the path of the part in the request. Error messages name this
        path. In strict mode, raises `InvalidRequest` for unknown parts and unknown members."""
        parts: Sequence[InputPart]
        try:
            parts = _KNOWN_PARTS.decode(content)
        except (msgspec.ValidationError, RecursionError):
            parts = _parts(where, content)
            self._note_members(where, parts, content)
        kept = []
        for number, part in enumerate(parts):
            place = f"{where}[{number}]"
            if part.type is None or part.type in KNOWN_PARTS:
                kept.append((place, part))
            else:
                error = invalid_value(f"{place}.type", f"{part.type[:64]!r} is not supported in a message")
                self.tolerance.leave_out(f"content.{part.type}", error)
        return kept

    def _note_members(self, where: str, parts: Sequence[InputPart], content: Raw) -> None:
        for number, (part, source) in enumerate(zip(parts, _OBJECTS.decode(content), strict=True)):
            if part.type not in KNOWN_PARTS:
                continue
            for name in _NO_EFFECT.intersection(source):
                self.tolerance.note(f"content.{part.type}.{name}")
            for name in self.tolerance.unknown(source, _MEMBERS):
                place = f"{where}[{number}].{name}"
                error = unsupported_parameter(f"Unknown member: '{place}'.", place)
                self.tolerance.leave_out(f"content.{part.type}.{name}", error)

    def note(self, kind: str, where: str) -> None:
        if self.sent is not None:
            self.sent.setdefault(kind, where)


def message_content(where: str, role: str, content: Raw, rules: ContentRules) -> Raw | None:
    """Convert the content of a message to chat content. The result is a JSON string, or an array of parts for a user
    message with more than text. The result is None if the message has no part of a known type."""
    data = bytes(content)
    if data[:1] == b'"':
        return content
    if not given(content):
        raise missing_parameter(f"{where}.content")
    if (only := _only_text(data)) is not None:
        return quoted(only)
    parts = rules.known(f"{where}.content", content)
    if not parts and _says_something(content):
        return None
    if role == "assistant":
        return quoted(b"".join(_text(place, part) for place, part in parts))
    if all(part.type in _TEXT for _, part in parts):
        if len(parts) == 1 or role != "user":
            return quoted(rb"\n".join(_text(place, part) for place, part in parts))
    elif role != "user":
        raise invalid_parameter(f"{where}.content", f"{role} messages accept only text")
    if not parts:
        return _EMPTY
    made = [bytes(_part(place, part, rules)) for place, part in parts]
    if not rules.profile.images and all(part.startswith(_TEXT_PART) for part in made):
        # Servers of text-only models often accept only a string.
        return quoted(rb"\n".join(_inside(part) for part in made))
    return Raw(b"[%b]" % b",".join(made))


_ONE_TEXT: Final = (
    (b'[{"type":"input_text","text":"', b'"}]'),
    (b'[{"type":"output_text","annotations":[],"logprobs":[],"text":"', b'"}]'),
    (b'[{"type":"output_text","text":"', b'","annotations":[],"logprobs":[]}]'),
    (b'[{"type":"output_text","text":"', b'"}]'),
)


def _only_text(content: bytes) -> bytes | None:
    """Return the escaped text of a list of one text part, in the form that Antiphon stores and that SDKs send. Returns
    None for any other valid JSON. Long histories consist of such lists, so this function does not decode them."""
    for begin, end in _ONE_TEXT:
        if content.startswith(begin) and content.endswith(end):
            text = content[len(begin) : -len(end)]
            return None if b'"' in text and _ends_early(text) else text
    return None


def _ends_early(text: bytes) -> bool:
    """Whether the text has a quotation mark without a backslash. Such a mark ends a JSON string, so the part has more
    fields, or the list has more parts."""
    marks = text.count(b'"')
    if b"\\\\" in text:
        text = text.replace(b"\\\\", b"")
    return text.count(b'\\"') != marks


def _says_something(parts: Raw | bytes) -> bool:
    """Whether a JSON array has at least one element."""
    return bool(bytes(parts)[1:-1].strip())


def output_content(where: str, output: Raw, rules: ContentRules) -> tuple[bytes, list[Raw]]:
    """Return the text of a tool output as escaped JSON text, and the output's images as chat parts."""
    if not given(output):
        raise missing_parameter(f"{where}.output")
    data = bytes(output)
    if data[:1] == b'"':
        return data[1:-1], []
    if data[:1] == b"{":
        part = _parts(f"{where}.output", Raw(b"[%b]" % data))[0]
        if first(part.text) == b'"' and (part.type is None or part.type in _TEXT):
            # The client sent one part without a list around it.
            return bytes(part.text)[1:-1], []
        if part.type in _IMAGES:
            data = b"[%b]" % data
    if data[:1] == b"{":
        # The client sent an object instead of a string that holds JSON. The model gets the object as JSON text.
        return encode(data.decode())[1:-1], []
    if data[:1] != b"[":
        raise invalid_type(f"{where}.output", "expected a string or a list of content parts")
    text, images = [], []
    parts = rules.known(f"{where}.output", Raw(data))
    if not parts and any(part.type == "encrypted_content" for part in _parts(f"{where}.output", Raw(data))):
        # Another server encrypted the results of a client's search. The conversation continues, and the model may
        # search again.
        return fragment_of(ENCRYPTED_OUTPUT), []
    if not parts and _says_something(data):
        # A call waits for this output, so an output without its content would be wrong.
        raise invalid_value(f"{where}.output", "no content part has a supported type")
    for name, part in parts:
        if part.type in _TEXT:
            text.append(_text(name, part))
        else:
            made = _part(name, part, rules)
            if bytes(made).startswith(_TEXT_PART):
                text.append(_inside(bytes(made)))
            else:
                images.append(made)
    # Some servers refuse an empty output, and the model learns nothing from an empty output.
    return rb"\n".join(text) or (_SHOWN_BELOW if images else b""), images


def joined_text(where: str, content: Raw, rules: ContentRules) -> bytes:
    """Return all text of a reasoning item's content or summary, as escaped JSON text."""
    if first(content) != b"[":
        return b""
    parts = rules.known(where, content)
    return rb"\n\n".join(_text(where, part) for _, part in parts if given(part.text))


def _parts(where: str, content: Raw) -> list[InputPart]:
    return read_value(where, _PARTS, content)


def _text(where: str, part: InputPart) -> bytes:
    value = part.refusal if part.type == "refusal" else part.text if part.type in _TEXT else ABSENT
    if first(value) != b'"':
        raise invalid_parameter(
            where, f"a part of type {str(part.type)[:64]!r} is not allowed here, or its text is missing"
        )
    return bytes(value)[1:-1]


_TEXT_PART: Final = b'{"type":"text","text":"'
_SHOWN_BELOW: Final = b"(The output is in the next message.)"


def _part(where: str, part: InputPart, rules: ContentRules) -> Raw:
    """Convert one content part of a user message to a chat part."""
    kind = part.type
    if kind in _TEXT:
        return _text_part(_text(where, part))
    if kind in _IMAGES:
        return _image(where, part, rules)
    if kind == "input_file":
        return _file(where, part, rules)
    if kind == "input_audio":
        if not rules.profile.audio_input:
            raise _unsupported(where, "The server of this model does not accept audio. Send text.")
        if first(part.input_audio) != b"{":
            raise missing_parameter(f"{where}.input_audio")
        rules.note("audio", where)
        return Raw(b'{"type":"input_audio","input_audio":%b}' % bytes(part.input_audio))
    kind = required(where, "type", kind)
    raise invalid_value(f"{where}.type", f"{kind[:64]!r} is not supported in a message")


def _text_part(fragment: bytes) -> Raw:
    return Raw(b'%b%b"}' % (_TEXT_PART, fragment))


def _inside(part: bytes) -> bytes:
    """Return the text of a chat text part, as escaped JSON text."""
    return part[len(_TEXT_PART) : -2]


def _image(where: str, part: InputPart, rules: ContentRules) -> Raw:
    if not rules.profile.images:
        raise _unsupported(where, "The server of this model does not accept images. Send text.")
    _check_source(where, image_url=_says(part.image_url), file_id=part.file_id is not None)
    if first(part.image_url) == b"{":
        # The client sent the image part in the form of Chat Completions.
        url = _CHAT_IMAGE.decode(part.image_url)
        return _image(where, InputPart(image_url=url.url, detail=url.detail or part.detail), rules)
    if first(part.image_url) == b'"' and bytes(part.image_url) != b'""':
        detail = _detail(where, part.detail, rules)
        rules.note("image", where)
        return Raw(
            b'{"type":"image_url","image_url":{"url":%b,"detail":"%b"}}' % (bytes(part.image_url), detail.encode())
        )
    if part.file_id is not None:
        file = _brought(f"{where}.file_id", part.file_id, rules)
        kind = image_type(file.data[:FIRST_BYTES])
        if kind is None:
            raise invalid_parameter(f"{where}.file_id", "the file is not a PNG, JPEG, GIF or WebP image")
        return _image(where, InputPart(image_url=Raw(b'"%b"' % _data_url(kind, file.data)), detail=part.detail), rules)
    raise missing_parameter(f"{where}.image_url")


def _says(value: Raw) -> bool:
    return given(value) and bytes(value) != b'""'


def _check_source(where: str, **sources: bool) -> None:
    """Raise an error if a part has more than one source, because it is unclear which source the client means."""
    sent = [name for name, there in sources.items() if there]
    if len(sent) > 1:
        raise mutually_exclusive(*(f"{where}.{name}" for name in sent[:2]))


def _detail(where: str, detail: str | None, rules: ContentRules) -> str:
    """Return the level of detail for an image, as a value of Chat Completions."""
    known = known_choice(f"{where}.detail", detail, _DETAILS, rules.tolerance)
    return "high" if detail == "original" else detail or "auto" if known else "auto"


def _file(where: str, part: InputPart, rules: ContentRules) -> Raw:
    """Convert a file to a chat part. A text file becomes a text part. Other files become file parts if the server
    accepts them."""
    by_url, by_id = part.file_url is not None, part.file_id is not None
    _check_source(where, file_data=_says(part.file_data), file_url=by_url, file_id=by_id)
    if part.file_url is not None:
        return _brought_file(where, _brought(f"{where}.file_url", part.file_url, rules), part, rules)
    if first(part.file_data) == b'"':
        name = part.filename or "file"
        header = bytes(memoryview(part.file_data)[1:128]).partition(b",")[0].replace(rb"\/", b"/")
        media_type = header[5:].split(b";")[0].decode("ascii", "replace") if header.startswith(b"data:") else ""
        if is_text(name, media_type):
            return _as_text(name, _decoded(where, bytes(part.file_data)[1:-1]))
        data = bytes(part.file_data)
        if not media_type:
            # Chat servers expect a data URL. The Responses API also accepts base64 without the prefix.
            media_type = next((kind for ending, kind in _ENDINGS.items() if name.lower().endswith(ending)), BYTES)
            data = b'"data:%b;base64,%b' % (media_type.encode(), data[1:])
        return _file_part(where, name, media_type, data, part, rules)
    if part.file_id is not None:
        return _brought_file(where, _brought(f"{where}.file_id", part.file_id, rules), part, rules)
    raise missing_parameter(f"{where}.file_data")


def _brought(where: str, name: str, rules: ContentRules) -> FetchedFile:
    """Return the file with the URL or id `name`. Raises `FileNotFetched` if the file is not yet fetched, and
    `InvalidRequest` if the fetch failed."""
    found = rules.files.get(name)
    if found is None:
        raise FileNotFetched(where)
    if isinstance(found, ApiError):
        raise InvalidRequest(found.message, param=where, code=found.code)
    return found


def _brought_file(where: str, file: FetchedFile, part: InputPart, rules: ContentRules) -> Raw:
    name, media_type = part.filename or file.name, file.media_type
    if is_text(name, media_type):
        return _as_text(name, file.data)
    return _file_part(where, name, media_type, b'"%b"' % _data_url(media_type, file.data), part, rules)


def _data_url(media_type: str, data: bytes) -> bytes:
    return b"data:%b;base64,%b" % (media_type.encode(), base64.b64encode(data))


def _file_part(where: str, name: str, media_type: str, data: bytes, part: InputPart, rules: ContentRules) -> Raw:
    """Convert a data URL to an image part or a file part."""
    if media_type.startswith("image/") and rules.profile.images:
        return _image(where, InputPart(image_url=Raw(data), detail=part.detail), rules)
    if rules.profile.files != "part":
        raise _unsupported(
            where, f"The server of this model does not accept files of this type ({name[:64]}). Send the file's text."
        )
    return Raw(b'{"type":"file","file":{"filename":%b,"file_data":%b}}' % (encode(name), data))


def _as_text(name: str, data: bytes) -> Raw:
    text = data.decode("utf-8", "replace").removeprefix("\ufeff")
    return _text_part(encode(f"File {name}:\n{text}")[1:-1])


def _decoded(where: str, data: bytes) -> bytes:
    try:
        data = data.replace(rb"\/", b"/")
        return base64.b64decode(data.partition(b",")[2] if data.startswith(b"data:") else data, validate=True)
    except binascii.Error:
        raise invalid_parameter(f"{where}.file_data", "the data is not base64") from None


def _unsupported(where: str, what: str) -> InvalidRequest:
    return unsupported_parameter(f"Invalid '{where}': {what}", where)


# The functions below list the files that a request refers to. For a request without files, they do no work. They skip
# an unreadable part, because the translation reports it as an error.

_GONE: Final = FetchedFile("unavailable.txt", "text/plain", b"[This file is no longer available.]")


_FILE_PARTS: Final = msgspec.json.Decoder(list[FilePart])
_STORED: Final = msgspec.json.Decoder(StoredParts)


class FileNotFetched(InvalidRequest):
    """The translation found a `file_url` or `file_id` whose file is not yet fetched. The exchange then fetches the file
    and translates the request again.

    A client gets this error only if the file is also missing in the second translation.
    """

    def __init__(self, where: str) -> None:
        super().__init__(f"The file of '{where}' was not fetched.", param=where, code="file_download_failed")


def file_urls(items: Iterable[InputItem | StoredParts]) -> list[str]:
    """Return the URLs of files in messages and tool outputs, in order, with duplicates."""
    return [part.file_url for part in _file_parts_of(items) if _is_fetched(part) and part.file_url]


def file_ids(items: Iterable[InputItem | StoredParts]) -> list[str]:
    """Return the ids of files, including images, in messages and tool outputs."""
    return [part.file_id for part in _file_parts_of(items) if part.file_id and not _is_fetched(part)]


def stored_parts(bodies: Iterable[bytes]) -> list[StoredParts]:
    """Decode the content parts of stored items."""
    return [_STORED.decode(body) for body in bodies]


def forgive_history(
    files: Mapping[str, FetchedFile | ApiError], input_names: Iterable[str]
) -> dict[str, FetchedFile | ApiError]:
    """Replace each missing file that only the history names by a short text for the model. Therefore a conversation can
    continue after a signed URL has expired or a file was deleted. A missing file of the request's own input stays an
    error."""
    named = set(input_names)
    return {name: _GONE if isinstance(file, ApiError) and name not in named else file for name, file in files.items()}


def _is_fetched(part: FilePart) -> bool:
    # If a part has a URL and an id, the translation uses the URL.
    return part.type == "input_file" and part.file_url is not None


def _file_parts_of(items: Iterable[InputItem | StoredParts]) -> Iterator[FilePart]:
    return (part for item in items for raw in (item.content, item.output) for part in _file_parts(raw))


def _file_parts(raw: Raw) -> list[FilePart]:
    if first(raw) == b"{":
        # The client sent one part without a list around it.
        raw = Raw(b"[%b]" % bytes(raw))
    if first(raw) != b"[":
        return []
    return try_decode(_FILE_PARTS, raw) or []
