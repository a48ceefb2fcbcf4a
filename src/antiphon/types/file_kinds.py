"""Determines a safe file name and the media type of a file, from its metadata and its first bytes.

The package `search` extracts the text of documents, and `upstream/fetch.py` downloads files.
`translation/chat/content.py` decides which files a chat server accepts.

Invariants: a safe file name contains no path, no control character and no character that reverses the writing
direction. A media type is in lower case and has no parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from mimetypes import MimeTypes
from typing import Final

BYTES: Final = "application/octet-stream"
"""The media type of a file whose type is unknown."""

FIRST_BYTES: Final = 16
"""The number of bytes from the start of a file that `image_type` needs."""

_UNNAMEABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MAX_NAME: Final = 255
_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_TEXT_TYPES: Final = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml")
_TEXT_ENDINGS: Final = (
    *(".txt", ".md", ".markdown", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".xml"),
    *(".html", ".htm", ".css", ".js", ".ts", ".tsx", ".jsx", ".py", ".rb", ".go", ".rs", ".java", ".c", ".h", ".cpp"),
    *(".cs", ".php", ".sh", ".sql", ".log", ".tex", ".kt", ".swift", ".lua", ".pl", ".diff", ".patch"),
)
# Uses only the tables of the standard library, so that the media types in a machine's configuration files do not change
# the result.
_TYPES: Final = MimeTypes()
for _ending, _type in {
    ".md": "text/markdown",
    ".markdown": "text/markdown",
    ".jsonl": "application/jsonl",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".toml": "text/plain",
    ".js": "text/javascript",
    ".webp": "image/webp",
    ".docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    ".pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
}.items():
    _TYPES.add_type(_type, _ending)


def plain_name(name: str) -> str:
    """Return the file name without its path and without unsafe characters, shortened to 255 bytes. The function does
    not shorten an extension of up to 16 characters. Return an empty string if the name has no allowed character."""
    name = _UNNAMEABLE.sub("", re.split(r"[/\\]", name)[-1]).strip()
    if name.strip(".") == "":
        return ""
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME:
        return name
    stem, dot, ending = name.rpartition(".")
    kept = (dot + ending).encode() if stem and len(ending) <= 16 else b""
    start = (stem if kept else name).encode()[: _MAX_NAME - len(kept)]
    return start.decode(errors="ignore") + kept.decode()


def media_type_of(name: str, declared: str = "") -> str:
    """Return the media type of a file: the type of its extension, else the declared type, else
    `application/octet-stream`."""
    guessed, coding = _TYPES.guess_type(name.lower(), strict=True)
    if guessed is not None and coding is None:
        # Some extensions of source code are also registered for another format (`.ts` for video).
        named_text = name.lower().endswith(_TEXT_ENDINGS) and not guessed.startswith(_TEXT_TYPES)
        return "text/plain" if named_text else guessed
    if name.lower().endswith(_TEXT_ENDINGS):
        return "text/plain"
    return declared if coding is None and _TYPE.fullmatch(declared) else BYTES


def is_text(name: str, media_type: str) -> bool:
    """Return whether the file is plain text, which a model can read without conversion."""
    if media_type and media_type != BYTES:
        return media_type.startswith(_TEXT_TYPES)
    return name.lower().endswith(_TEXT_ENDINGS)


def image_type(start: bytes) -> str | None:
    """Return the media type of a PNG, JPEG, GIF or WebP image, from the file's first bytes. Returns None for every
    other file."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if start.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "image/webp"
    return None


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """A file that the translation puts into a chat request. `name` is a safe file name, as `plain_name` returns it, and
    not empty. `media_type` is in lower case and has no parameters."""

    name: str
    media_type: str
    data: bytes
