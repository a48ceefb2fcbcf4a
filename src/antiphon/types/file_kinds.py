"""Determines a file's plain name and media type from its metadata and its first bytes.

Lives here: plain names, media types, which files are text, which pictures models look at, and a file as the translation
gets it (`FetchedFile`). Not here: reading a file (`search/` reads documents), fetching one (`upstream/fetch.py`), and
what a chat server takes (`translation/chat/content.py`).

Invariants: a plain name holds no path, no control character and nothing that turns the direction of writing. A media
type is in lower case and without parameters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from mimetypes import MimeTypes
from typing import Final

BYTES: Final = "application/octet-stream"
"""The media type of what could be anything."""

FIRST_BYTES: Final = 16
"""How much of a file `image_type` looks at."""

_UNNAMEABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MAX_NAME: Final = 255
_TYPE: Final = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}")
_TEXT_TYPES: Final = ("text/", "application/json", "application/xml", "application/yaml", "application/x-yaml")
_TEXT_ENDINGS: Final = (
    *(".txt", ".md", ".markdown", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".xml"),
    *(".html", ".htm", ".css", ".js", ".ts", ".tsx", ".jsx", ".py", ".rb", ".go", ".rs", ".java", ".c", ".h", ".cpp"),
    *(".cs", ".php", ".sh", ".sql", ".log", ".tex", ".kt", ".swift", ".lua", ".pl", ".diff", ".patch"),
)
# The tables of the standard library alone: what a machine's own files add must not change what a file is.
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
    """The file name alone, cut to 255 bytes at its ending; empty when nothing of it can be kept."""
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
    """The media type of a file: by its name's ending, else the declared type, else `application/octet-stream`."""
    guessed, coding = _TYPES.guess_type(name.lower(), strict=True)
    if guessed is not None and coding is None:
        # Source code has registered types that say nothing (`.ts` is a film).
        named_text = name.lower().endswith(_TEXT_ENDINGS) and not guessed.startswith(_TEXT_TYPES)
        return "text/plain" if named_text else guessed
    if name.lower().endswith(_TEXT_ENDINGS):
        return "text/plain"
    return declared if coding is None and _TYPE.fullmatch(declared) else BYTES


def is_text(name: str, media_type: str) -> bool:
    """Whether a model can read the file's bytes as they are."""
    if media_type and media_type != BYTES:
        return media_type.startswith(_TEXT_TYPES)
    return name.lower().endswith(_TEXT_ENDINGS)


def image_type(start: bytes) -> str | None:
    """The media type of a picture by its first bytes; None for what models do not look at."""
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
    """A file as the translation sees it: `name` is a plain file name (never empty, no path), `media_type` is in lower
    case and without parameters."""

    name: str
    media_type: str
    data: bytes
