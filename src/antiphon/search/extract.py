"""Extracts the text and title of a file.

Lives here: one reader function per file format, and the choice of the function. Text, Markdown, source code, JSON, CSV
and HTML need no library. PDF and office files need the libraries of the package extra `vector-stores`. Not here: the
process that calls this module (`reader_process.py`).

Clients upload the files, so the files are untrusted. `reader_process.py` limits the resources of the process.

Invariants: an unreadable file raises `Unreadable` with OpenAI's code `unsupported_file` or `invalid_file`. No error
message contains the file's text. An office file is a zip archive. Before this module unpacks an office file, it adds up
the XML sizes in the archive's directory. If the sum is too large, the module rejects the file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any, Literal

from antiphon.html_text import html_text


@dataclass(frozen=True, slots=True)
class Document:
    """The extracted text of a file. `title` is empty when the file has no title."""

    text: str
    title: str = ""


class Unreadable(Exception):
    """The file cannot be read, and a retry would fail in the same way."""

    def __init__(self, message: str, code: Literal["unsupported_file", "invalid_file"] = "invalid_file") -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def table_text(rows: list[list[str]]) -> str:
    """Convert a table to one line per row: `column: value, column: value`. The first row is the header. Each line
    repeats the column names, so that a row is understandable in a separate chunk."""
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


_BINARY = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_LONG_LINE = 2_000
_MAX_ENTRIES = 20_000
_NO_LIBRARY = (
    "This server cannot read files of this type, because it lacks the extra 'vector-stores'. Ask the operator to "
    "install the extra."
)


def extract(path: Path, name: str, max_bytes: int) -> Document:
    """Extract the text and title of the file at `path`. `name`: the uploaded file's name. The suffix of `name` and the
    file's first bytes select the reader. Raises `Unreadable`.

    `max_bytes`: the maximum number of characters of the text. The unpacked XML of an office file may have at most eight
    times this number of bytes.
    """
    with path.open("rb") as file:
        start = file.read(8)
    document = _reader(PurePath(name).suffix.lower(), start)(path, max_bytes)
    if not document.text.strip():
        raise Unreadable("The file contains no text that this server can extract.", "unsupported_file")
    if len(document.text) > max_bytes:
        raise _too_long(max_bytes)
    return document


def decode(data: bytes) -> str:
    """Decode UTF-8 or UTF-16 (with a byte order mark). Decode other data as Windows-1252. Raises `Unreadable` for
    binary data."""
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
        raise Unreadable("This server cannot read files of this type.", "unsupported_file")
    return text


def _reader(suffix: str, start: bytes) -> Callable[[Path, int], Document]:
    if start.startswith(b"%PDF-") or suffix == ".pdf":
        return read_pdf
    if start.startswith(b"PK\x03\x04"):
        if suffix not in _ARCHIVES:
            raise Unreadable("This server does not read archives. Upload the files in the archive.", "unsupported_file")
        return partial(_read_archive, _ARCHIVES[suffix])
    if suffix in (".docx", ".pptx", ".xlsx"):
        raise Unreadable("The content of the file does not match the type in its name.")
    return _TEXTS.get(suffix, _read_text)


def _load(path: Path, max_bytes: int) -> str:
    if path.stat().st_size > 2 * max_bytes:  # UTF-16 may take two bytes where UTF-8 takes one
        raise _too_long(max_bytes)
    return decode(path.read_bytes())


def _read_text(path: Path, max_bytes: int) -> Document:
    text = _load(path, max_bytes)
    return Document(text, _heading(text))


def _heading(text: str) -> str:
    """Return the text of a Markdown heading (`# …`) in the first non-blank line, or an empty string."""
    first = text.lstrip()[:256].split("\n", 1)[0]
    return first[2:].strip() if first.startswith("# ") else ""


def _read_json(path: Path, max_bytes: int) -> Document:
    text = _load(path, max_bytes)
    if max(map(len, text.splitlines()), default=0) > _LONG_LINE:
        # Chunks end at line ends, so reformat JSON that has a very long line.
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


# The functions below read formats that need a library.


@contextmanager
def _libraries() -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise Unreadable(_NO_LIBRARY, "unsupported_file") from None


def _too_long(max_bytes: int) -> Unreadable:
    return Unreadable(f"The text of the file is longer than {max_bytes} bytes.")


def read_pdf(path: Path, max_bytes: int) -> Document:
    """Extract the text of all pages of a PDF file. The text is empty if the pages are scanned images. Raises
    `Unreadable`."""
    with _libraries():
        import pypdfium2 as pdfium
    try:
        document = pdfium.PdfDocument(path)
    except pdfium.PdfiumError as error:
        if "password" in str(error).lower():
            raise Unreadable("The PDF file is protected by a password.") from None
        raise Unreadable("The PDF file is damaged.") from None
    pages, size = [], 0
    try:
        for number in range(len(document)):
            page = document[number]
            text_page = page.get_textpage()
            # PDFium writes U+FFFE for a hyphen at a line's end. Remove U+FFFE to join the two parts of the word.
            text = text_page.get_text_bounded().replace("\ufffe\r\n", "").replace("\ufffe", "").replace("\r\n", "\n")
            text_page.close()
            page.close()
            pages.append(text.replace("\x00", ""))
            size += len(text)
            if size > max_bytes:
                raise _too_long(max_bytes)
        title = str(document.get_metadata_dict().get("Title") or "")
    except pdfium.PdfiumError:
        raise Unreadable("The PDF file is damaged.") from None
    finally:
        document.close()
    return Document("\n\n".join(pages), title.strip())


def read_docx(path: Path, max_bytes: int) -> Document:
    """Extract the paragraphs and tables of a Word file, in document order. Raises `Unreadable` if the library is
    missing."""
    with _libraries():
        import docx
        from docx.text.paragraph import Paragraph
    document = docx.Document(str(path))
    blocks = []
    for block in document.iter_inner_content():
        if isinstance(block, Paragraph):
            blocks.append(block.text)
        else:
            blocks.append(table_text([[cell.text for cell in row.cells] for row in block.rows]))
    return Document("\n\n".join(block for block in blocks if block.strip()), document.core_properties.title or "")


def read_pptx(path: Path, max_bytes: int) -> Document:
    """Extract the text of each slide of a PowerPoint file, followed by its speaker notes. Raises `Unreadable` if the
    library is missing."""
    with _libraries():
        import pptx
    deck = pptx.Presentation(str(path))
    slides = []
    for slide in deck.slides:
        parts = [text for shape in slide.shapes for text in _shape_texts(shape)]
        if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
            parts.append(slide.notes_slide.notes_text_frame.text)
        slides.append("\n".join(part for part in parts if part.strip()))
    return Document("\n\n".join(slides), deck.core_properties.title or "")


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for part in shape.shapes:
            yield from _shape_texts(part)
    elif getattr(shape, "has_table", False):
        yield table_text([[cell.text for cell in row.cells] for row in shape.table.rows])
    elif getattr(shape, "has_text_frame", False):
        yield shape.text_frame.text


def read_xlsx(path: Path, max_bytes: int) -> Document:
    """Extract every sheet of an Excel file, one line per row (see `table_text`). Raises `Unreadable`."""
    with _libraries():
        import openpyxl
    # openpyxl would reject a path without the suffix .xlsx, so pass an open file.
    with path.open("rb") as file:
        book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        sheets, size = [], 0
        for sheet in book.worksheets:
            rows = []
            for row in sheet.iter_rows(values_only=True):
                cells = ["" if value is None else str(value) for value in row]
                size += sum(map(len, cells))
                if size > max_bytes:
                    raise _too_long(max_bytes)
                rows.append(cells)
            if text := table_text(rows):
                sheets.append(f"{sheet.title}\n{text}")
        return Document("\n\n".join(sheets), book.properties.title or "")


def _read_archive(read: Callable[[Path, int], Document], path: Path, max_bytes: int) -> Document:
    """Check the unpacked size of an office file, then read it with `read`. Raises `Unreadable`."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise Unreadable("The file is damaged.") from None
    # Count only XML, because the libraries do not read pictures and fonts. XML is a few times larger than the text that
    # it contains.
    xml = sum(entry.file_size for entry in entries if entry.filename.endswith((".xml", ".rels")))
    if len(entries) > _MAX_ENTRIES or xml > 8 * max_bytes:
        raise Unreadable("The decompressed file is too large.")
    try:
        return read(path, max_bytes)
    except (Unreadable, MemoryError):
        raise
    except Exception:
        # The office file libraries raise many kinds of errors for damaged files, for example KeyError and lxml's
        # errors.
        raise Unreadable("The file is damaged.") from None


_TEXTS = {
    **dict.fromkeys((".html", ".htm", ".xhtml"), _read_html),
    **dict.fromkeys((".csv", ".tsv"), _read_table),
    ".json": _read_json,
}
_ARCHIVES = {".docx": read_docx, ".pptx": read_pptx, ".xlsx": read_xlsx, ".xlsm": read_xlsx}
