"""What a file says: its text and, where it has one, its title.

Lives here: which reader a file gets, and the readers of plain formats (text, Markdown, source code, JSON, CSV, HTML).
Not here: office formats and PDF (`extract_office.py`), what a reader returns (`document.py`), the process this runs in
(`reader_process.py`).

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
from pathlib import Path, PurePath

from antiphon.html_text import html_text
from antiphon.search.document import Document, Unreadable, table_text
from antiphon.search.extract_office import read_docx, read_pdf, read_pptx, read_xlsx

_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LONG_LINE = 2_000
_ARCHIVES = {".docx": read_docx, ".pptx": read_pptx, ".xlsx": read_xlsx, ".xlsm": read_xlsx}


def extract(path: Path, name: str, max_bytes: int) -> Document:
    """The text of the file at `path`, which its owner calls `name`. Raises `Unreadable`.

    `max_bytes` limits the text, and what an archive may unpack to.
    """
    with path.open("rb") as file:
        start = file.read(8)
    document = _reader(PurePath(name).suffix.lower(), start)(path, max_bytes)
    if not document.text.strip():
        raise Unreadable("The file holds no text that can be extracted.", "unsupported_file")
    if len(document.text) > max_bytes:
        raise Unreadable(f"The text of the file is longer than {max_bytes} bytes.")
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
        return read_pdf
    if start.startswith(b"PK\x03\x04"):
        if suffix not in _ARCHIVES:
            raise Unreadable("Archives cannot be read.", "unsupported_file")
        return _ARCHIVES[suffix]
    if suffix in (".docx", ".pptx", ".xlsx"):
        raise Unreadable("The file is not what its name says.")
    if suffix in (".html", ".htm", ".xhtml"):
        return _read_html
    if suffix in (".csv", ".tsv"):
        return _read_table
    if suffix == ".json":
        return _read_json
    return _read_text


def _load(path: Path, max_bytes: int) -> str:
    if path.stat().st_size > 2 * max_bytes:  # UTF-16 has two bytes for each of ours
        raise Unreadable(f"The text of the file is longer than {max_bytes} bytes.")
    return decode(path.read_bytes())


def _read_text(path: Path, max_bytes: int) -> Document:
    text = _load(path, max_bytes)
    return Document(text, _heading(text))


def _heading(text: str) -> str:
    """A Markdown heading in the first line."""
    first = text.lstrip()[:256].split("\n", 1)[0]
    return first[2:].strip() if first.startswith("# ") else ""


def _read_json(path: Path, max_bytes: int) -> Document:
    text = _load(path, max_bytes)
    if max(map(len, text.splitlines()), default=0) > _LONG_LINE:
        # One endless line says nothing about where to cut.
        with suppress(ValueError, RecursionError):
            text = json.dumps(json.loads(text), indent=1, ensure_ascii=False)
    return Document(text)


def _read_table(path: Path, max_bytes: int) -> Document:
    text = _load(path, max_bytes)
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(text[:8192], ",;\t|")
    except csv.Error:
        dialect = csv.excel_tab if path.suffix == ".tsv" else csv.excel
    csv.field_size_limit(max_bytes)
    try:
        return Document(table_text(list(csv.reader(io.StringIO(text), dialect))))
    except csv.Error:
        return Document(text)


def _read_html(path: Path, max_bytes: int) -> Document:
    title, text = html_text(_load(path, max_bytes))
    return Document("\n".join(line for line in text.split("\n") if line), title)
