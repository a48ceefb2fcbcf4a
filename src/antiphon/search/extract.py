"""What a file says: its text and, where it has one, its title.

Lives here: which reader a file gets, and the readers of plain formats (text, Markdown, source code, JSON, CSV, HTML).
Not here: office formats and PDF (`extract_office.py`), the process this runs in (`reader_process.py`).

Everything here is called with files that strangers made: `reader_process.py` has the limits.

Invariant: whatever cannot be read is an `Unreadable` with one of OpenAI's two codes, and no message holds content.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

__all__ = ["Document", "Unreadable", "decode", "extract"]

_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LONG_LINE = 2_000

_DROPPED = ["script", "style", "noscript", "template", "svg", "nav", "iframe", "object", "head"]
_INLINE = frozenset(
    [
        *("a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "del", "dfn", "em", "font", "i", "ins", "kbd"),
        *("label", "mark", "q", "s", "samp", "small", "span", "strong", "sub", "sup", "time", "tt", "u", "var", "wbr"),
        "-text",
    ]
)


@dataclass(frozen=True, slots=True)
class Document:
    """A file's text; `title` is empty when it has none."""

    text: str
    title: str = ""


class Unreadable(Exception):
    """The file cannot be read, now or later."""

    def __init__(self, message: str, code: Literal["unsupported_file", "invalid_file"] = "invalid_file") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def extract(path: Path, name: str, most_bytes: int) -> Document:
    """The text of the file at `path`, which its owner calls `name`. Raises `Unreadable`.

    `most_bytes` limits the text, and what an archive may unpack to.
    """
    with path.open("rb") as file:
        start = file.read(8)
    document = _reader(PurePath(name).suffix.lower(), start)(path, most_bytes)
    if not document.text.strip():
        raise Unreadable("The file holds no text that can be extracted.", "unsupported_file")
    if len(document.text) > most_bytes:
        raise Unreadable(f"The text of the file is longer than {most_bytes} bytes.")
    return document


def decode(data: bytes) -> str:
    """Text in UTF-8, UTF-16 (with its mark) or, when it is neither, Windows-1252. Raises `Unreadable`."""
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                raise Unreadable("The file's text is damaged.") from None
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    if _BINARY.search(text[:65_536]):
        raise Unreadable("Files of this kind cannot be read.", "unsupported_file")
    return text


def _reader(suffix: str, start: bytes) -> Callable[[Path, int], Document]:
    if start.startswith(b"%PDF-") or suffix == ".pdf":
        return _office("read_pdf")
    if start.startswith(b"PK\x03\x04"):
        known = {".docx": "read_docx", ".pptx": "read_pptx", ".xlsx": "read_xlsx", ".xlsm": "read_xlsx"}
        if suffix not in known:
            raise Unreadable("Archives cannot be read.", "unsupported_file")
        return _office(known[suffix])
    if suffix in (".docx", ".pptx", ".xlsx"):
        raise Unreadable("The file is not what its name says.")
    if suffix in (".html", ".htm", ".xhtml"):
        return _read_html
    if suffix in (".csv", ".tsv"):
        return _read_table
    if suffix == ".json":
        return _read_json
    return _read_text


def _office(name: str) -> Callable[[Path, int], Document]:
    from antiphon.search import extract_office

    reader: Callable[[Path, int], Document] = getattr(extract_office, name)
    return reader


def _load(path: Path, most_bytes: int) -> str:
    if path.stat().st_size > 2 * most_bytes:  # UTF-16 has two bytes for each of ours
        raise Unreadable(f"The text of the file is longer than {most_bytes} bytes.")
    return decode(path.read_bytes())


def _read_text(path: Path, most_bytes: int) -> Document:
    text = _load(path, most_bytes)
    return Document(text, _heading(text))


def _heading(text: str) -> str:
    """A Markdown heading in the first line."""
    first = text.lstrip()[:256].split("\n", 1)[0]
    return first[2:].strip() if first.startswith("# ") else ""


def _read_json(path: Path, most_bytes: int) -> Document:
    text = _load(path, most_bytes)
    if max(map(len, text.splitlines()), default=0) > _LONG_LINE:
        # One endless line says nothing about where to cut.
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    return Document(text)


def _read_table(path: Path, most_bytes: int) -> Document:
    text = _load(path, most_bytes)
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(text[:8192], ",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if path.suffix == ".tsv" else csv.excel
    csv.field_size_limit(most_bytes)
    try:
        return Document(table_text(list(csv.reader(io.StringIO(text), dialect))))
    except csv.Error:
        return Document(text)


def table_text(rows: list[list[str]]) -> str:
    """A table as lines `column: value, …`, so that each row says by itself what its values are."""
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        return "\n".join(", ".join(row) for row in rows)
    header = [cell.strip() for cell in rows[0]]
    lines = []
    for row in rows[1:]:
        cells = []
        for number, cell in enumerate(row):
            if cell := cell.strip():
                column = header[number] if number < len(header) else ""
                cells.append(f"{column}: {cell}" if column else cell)
        lines.append(", ".join(cells))
    return "\n".join(lines)


def _read_html(path: Path, most_bytes: int) -> Document:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        raise Unreadable("HTML cannot be read here: install the extra 'knowledge'.", "unsupported_file") from None
    tree = LexborHTMLParser(_load(path, most_bytes))
    found = tree.css_first("title")
    title = found.text().strip() if found is not None else ""
    tree.strip_tags(_DROPPED)
    parts: list[str] = []
    if tree.body is not None:
        for node in tree.body.traverse(include_text=True):
            if node.tag == "-text":
                parts.append(re.sub(r"\s+", " ", node.text_content or ""))
            elif node.tag not in _INLINE:
                parts.append("\n")
    lines = (line.strip() for line in "".join(parts).split("\n"))
    return Document("\n".join(line for line in lines if line), " ".join(title.split()))
