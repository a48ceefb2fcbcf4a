"""Texts of PDF, Word, PowerPoint and Excel files.

Lives here: one reader per format, each on a library of the extra `vector-stores`. Not here: which file gets which
reader.

Invariant: a file that a library cannot read is an `Unreadable`, and an archive is refused before it is unpacked when
its own list says that it unpacks to too much.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from antiphon.search.document import Document, Unreadable, table_text

_MAX_ENTRIES = 20_000
_NO_LIBRARY = "Files of this kind cannot be read here: the server lacks the extra 'vector-stores'. Ask its operator."


def read_pdf(path: Path, max_bytes: int) -> Document:
    """The text of all pages. Scans have none."""
    try:
        import pypdfium2 as pdfium
    except ImportError:
        raise Unreadable(_NO_LIBRARY, "unsupported_file") from None
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
            # U+FFFE is how a hyphen at a line's end comes out.
            text = text_page.get_text_bounded().replace("\ufffe\r\n", "").replace("\ufffe", "").replace("\r\n", "\n")
            text_page.close()
            page.close()
            pages.append(text.replace("\x00", ""))
            size += len(text)
            if size > max_bytes:
                raise Unreadable(f"The text of the file is longer than {max_bytes} bytes.")
        title = str(document.get_metadata_dict().get("Title") or "")
    except pdfium.PdfiumError:
        raise Unreadable("The PDF file is damaged.") from None
    finally:
        document.close()
    return Document("\n\n".join(pages), title.strip())


def read_docx(path: Path, max_bytes: int) -> Document:
    """Paragraphs and tables in their order."""
    try:
        import docx
        from docx.table import Table
        from docx.text.paragraph import Paragraph
    except ImportError:
        raise Unreadable(_NO_LIBRARY, "unsupported_file") from None

    def read() -> Document:
        document = docx.Document(str(path))
        blocks = []
        for block in document.iter_inner_content():
            if isinstance(block, Paragraph):
                blocks.append(block.text)
            elif isinstance(block, Table):
                blocks.append(table_text([[cell.text for cell in row.cells] for row in block.rows]))
        return Document("\n\n".join(block for block in blocks if block.strip()), document.core_properties.title or "")

    return _read_archive(path, max_bytes, read)


def read_pptx(path: Path, max_bytes: int) -> Document:
    """What is written on the slides, and the notes."""
    try:
        import pptx
    except ImportError:
        raise Unreadable(_NO_LIBRARY, "unsupported_file") from None

    def read() -> Document:
        deck = pptx.Presentation(str(path))
        slides = []
        for slide in deck.slides:
            parts = [text for shape in slide.shapes for text in _shape_texts(shape)]
            if slide.has_notes_slide and slide.notes_slide.notes_text_frame is not None:
                parts.append(slide.notes_slide.notes_text_frame.text)
            slides.append("\n".join(part for part in parts if part.strip()))
        return Document("\n\n".join(slides), deck.core_properties.title or "")

    return _read_archive(path, max_bytes, read)


def _shape_texts(shape: Any) -> Iterator[str]:
    if hasattr(shape, "shapes"):  # a group
        for part in shape.shapes:
            yield from _shape_texts(part)
    elif getattr(shape, "has_table", False):
        yield table_text([[cell.text for cell in row.cells] for row in shape.table.rows])
    elif getattr(shape, "has_text_frame", False):
        yield shape.text_frame.text


def read_xlsx(path: Path, max_bytes: int) -> Document:
    """Every sheet, a row a line."""
    try:
        import openpyxl
    except ImportError:
        raise Unreadable(_NO_LIBRARY, "unsupported_file") from None

    def read() -> Document:
        # By its path it would have to be called something.xlsx.
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            sheets, size = [], 0
            for sheet in book.worksheets:
                rows = []
                for row in sheet.iter_rows(values_only=True):
                    cells = ["" if value is None else str(value) for value in row]
                    size += sum(map(len, cells))
                    if size > max_bytes:
                        raise Unreadable(f"The text of the file is longer than {max_bytes} bytes.")
                    rows.append(cells)
                if text := table_text(rows):
                    sheets.append(f"{sheet.title}\n{text}")
            return Document("\n\n".join(sheets), book.properties.title or "")

    return _read_archive(path, max_bytes, read)


def _read_archive(path: Path, max_bytes: int, read: Callable[[], Document]) -> Document:
    """Read an office file after a look at what it unpacks to."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise Unreadable("The file is damaged.") from None
    # Pictures and fonts are larger than the text; XML is some times the text in it.
    if len(entries) > _MAX_ENTRIES or sum(entry.file_size for entry in entries if _is_xml(entry)) > 8 * max_bytes:
        raise Unreadable("The file unpacks to too much.")
    try:
        return read()
    except (Unreadable, MemoryError):
        raise
    except Exception:
        # These libraries raise whatever their XML and zip parsers raise: KeyError, lxml's errors, their own.
        raise Unreadable("The file is damaged.") from None


def _is_xml(entry: zipfile.ZipInfo) -> bool:
    return entry.filename.endswith((".xml", ".rels"))
