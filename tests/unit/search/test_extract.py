"""What is read of each kind of file, and what becomes of files that cannot be read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import docx
import openpyxl
import pptx
import pytest
from pptx.util import Inches

from antiphon.search.extract import Document, Unreadable, extract, read_docx, read_pdf, read_pptx, read_xlsx

MOST = 1 << 20


def read(folder: Path, name: str, content: bytes | str, limit: int = MOST) -> Document:
    path = folder / "stored"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return extract(path, name, limit)


def pdf(*pages: str) -> bytes:
    """A PDF file with a line of text on each page."""
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b""]
    kids = []
    for text in pages:
        stream = b"BT /F1 12 Tf 72 720 Td (%b) Tj ET" % text.encode("latin-1")
        kids.append(len(objects) + 1)
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R "
            b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
            % (len(objects) + 2)
        )
        objects.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
    objects[1] = b"<< /Type /Pages /Kids [%b] /Count %d >>" % (b" ".join(b"%d 0 R" % kid for kid in kids), len(kids))
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"xref\n0 %d\n0000000000 65535 f \n%btrailer << /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % (
        len(objects) + 1,
        table,
        len(objects) + 1,
        len(out),
    )


@pytest.mark.parametrize(
    ("name", "content", "text", "title"),
    [
        ("a.txt", "Hello\nworld", "Hello\nworld", ""),
        ("a.md", "\n# The title\n\nText.", "\n# The title\n\nText.", "The title"),
        ("a.py", "def f():\n    return 1", "def f():\n    return 1", ""),
        ("noname", "plain", "plain", ""),
        ("a.txt", "\ufeffmarked".encode("utf-8"), "marked", ""),
        ("a.txt", "wide ü".encode("utf-16"), "wide ü", ""),
        ("a.txt", "gr\xfc\xdfe".encode("latin-1"), "grüße", ""),
        ("a.csv", "name;age\nAnn;3\n\nBob;", "name: Ann, age: 3\nname: Bob", ""),
        ("a.tsv", "name\tage\nAnn\t3", "name: Ann, age: 3", ""),
        ("a.json", '{"a": 1}', '{"a": 1}', ""),
        (
            "a.html",
            "<html><head><title> The\n title</title><style>p {}</style></head><body><nav>menu</nav>"
            "<h1>Head</h1><p>One <b>bo</b>ld\n word</p><script>evil()</script><ul><li>a<li>b</ul><br>end</body></html>",
            "Head\nOne bold word\n- a\n- b\nend",
            "The title",
        ),
        ("a.pdf", pdf("First page", "Second page"), "First page\n\nSecond page", ""),
        ("called.txt", pdf("It is one"), "It is one", ""),
    ],
)
def test_what_is_read(tmp_path: Path, name: str, content: bytes | str, text: str, title: str) -> None:
    assert read(tmp_path, name, content) == Document(text, title)


def test_a_cell_of_a_table_may_be_long(tmp_path: Path) -> None:
    long = "x" * 200_000
    found = read(tmp_path, "a.csv", f"name,age\nAnn,3\nBob,4\n{long},5")
    assert found.text == f"name: Ann, age: 3\nname: Bob, age: 4\nname: {long}, age: 5"


def test_json_of_one_line_gets_lines(tmp_path: Path) -> None:
    text = json.dumps([{"name": f"entry {number}"} for number in range(500)])
    assert len(read(tmp_path, "a.json", text).text.splitlines()) > 500
    broken = text[:-1]
    assert read(tmp_path, "a.json", broken).text == broken


def test_word(tmp_path: Path) -> None:
    document = docx.Document()
    document.core_properties.title = "The title"
    document.add_heading("Head")
    document.add_paragraph("Before the table.")
    table = document.add_table(2, 2)
    for row, column, text in ((0, 0, "name"), (0, 1, "age"), (1, 0, "Ann"), (1, 1, "3")):
        table.cell(row, column).text = text
    document.add_paragraph("Behind it.")
    document.save(str(tmp_path / "x"))
    found = extract(tmp_path / "x", "a.docx", MOST)
    assert found == Document("Head\n\nBefore the table.\n\nname: Ann, age: 3\n\nBehind it.", "The title")


def test_slides(tmp_path: Path) -> None:
    deck: Any = pptx.Presentation()
    deck.core_properties.title = "The deck"
    slide = deck.slides.add_slide(deck.slide_layouts[1])
    slide.shapes.title.text = "Slide one"
    slide.placeholders[1].text = "Body"
    table = slide.shapes.add_table(2, 1, Inches(1), Inches(1), Inches(2), Inches(1)).table
    table.cell(0, 0).text, table.cell(1, 0).text = "name", "Ann"
    slide.notes_slide.notes_text_frame.text = "A note"
    deck.slides.add_slide(deck.slide_layouts[1]).shapes.title.text = "Slide two"
    deck.save(str(tmp_path / "x"))
    found = extract(tmp_path / "x", "a.pptx", MOST)
    assert found == Document("Slide one\nBody\nname: Ann\nA note\n\nSlide two", "The deck")


def test_sheets(tmp_path: Path) -> None:
    book: Any = openpyxl.Workbook()
    book.active.title = "People"
    for row in (["name", "age"], ["Ann", 3], [], ["Bob", None]):
        book.active.append(row)
    book.create_sheet("Empty")
    book.save(tmp_path / "x")
    assert extract(tmp_path / "x", "a.xlsx", MOST).text == "People\nname: Ann, age: 3\nname: Bob"


def bomb(folder: Path, name: str) -> bytes:
    path = folder / "bomb"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr(name, b" " * (64 << 20))
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "code", "says"),
    [
        ("a.txt", b"", "unsupported_file", "no text"),
        ("a.txt", b" \n ", "unsupported_file", "no text"),
        ("a.bin", b"\x7fELF\x00\x01\x02", "unsupported_file", "this type"),
        ("a.png", b"\x89PNG\r\n\x1a\n\x00\x00", "unsupported_file", "this type"),
        ("a.txt", b"\xff\xfea", "invalid_file", "damaged"),
        ("a.zip", b"PK\x03\x04rest", "unsupported_file", "archives"),
        ("a.docx", b"PK\x03\x04rest", "invalid_file", "damaged"),
        ("a.docx", b"not at all", "invalid_file", "does not match the type in its name"),
        ("a.pdf", b"%PDF-1.7 nothing", "invalid_file", "damaged"),
        ("a.pdf", b"not at all", "invalid_file", "damaged"),
        ("scan.pdf", pdf(""), "unsupported_file", "no text"),
        ("a.txt", b"x" * (MOST + 1), "invalid_file", "longer than"),
        ("a.txt", b"x" * (3 * MOST), "invalid_file", "longer than"),
        ("a.html", b"<html></html>", "unsupported_file", "no text"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: bytes, code: str, says: str) -> None:
    with pytest.raises(Unreadable) as raised:
        read(tmp_path, name, content)
    assert raised.value.code == code and says in raised.value.message


@pytest.mark.parametrize(
    ("name", "entry"),
    [("a.docx", "word/document.xml"), ("a.xlsx", "xl/sheet.xml"), ("a.pptx", "ppt/slides/slide1.xml")],
)
def test_what_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, name: str, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unreadable, match="decompressed file is too large"):
        read(tmp_path, name, bomb(tmp_path, entry))


def test_an_archive_that_is_no_document(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("hello.txt", "hello")
    for name in ("a.docx", "a.pptx", "a.xlsx"):
        with pytest.raises(Unreadable, match="damaged"):
            extract(tmp_path / "x", name, MOST)


def test_a_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for module in ("pypdfium2", "docx", "pptx", "openpyxl"):
        monkeypatch.setitem(sys.modules, module, None)
    for reader in (read_pdf, read_docx, read_pptx, read_xlsx):
        with pytest.raises(Unreadable, match="extra 'vector-stores'") as raised:
            reader(tmp_path / "x", MOST)
        assert raised.value.code == "unsupported_file"
