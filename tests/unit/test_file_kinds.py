"""What a file is called and what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.types.file_kinds import BYTES, FIRST_BYTES, image_type, is_text, media_type_of, plain_name

TEXT = """
.txt .md .markdown .rst .csv .tsv .json .jsonl .yaml .yml .toml .ini .xml .html .htm .css .js .ts .tsx .jsx .py .rb .go
.rs .java .c .h .cpp .cs .php .sh .sql .log .tex .kt .swift .lua .pl .diff .patch
"""


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/passwd", "passwd"),
        (r"C:\Users\me\notes.txt", "notes.txt"),
        ("a/b/", ""),
        ("..", ""),
        (".", ""),
        ("...", ""),
        (".env", ".env"),
        ("  x.txt ", "x.txt"),
        ("a\r\nb\x00\x7f.txt", "ab.txt"),
        ("invoice\u202efdp.exe", "invoicefdp.exe"),
        ("naïve 漢字.md", "naïve 漢字.md"),
        ("\ud800x", "x"),
        ("", ""),
        ("n" * 300 + ".pdf", "n" * 251 + ".pdf"),
        ("漢" * 100 + ".pdf", "漢" * 83 + ".pdf"),
        ("n" * 300, "n" * 255),
        ("n" * 251 + ".pdf", "n" * 251 + ".pdf"),
        ("n" * 252 + ".pdf", "n" * 251 + ".pdf"),
        # An ending of up to 16 letters stays; what is longer is none.
        ("n" * 300 + "." + "e" * 16, "n" * 238 + "." + "e" * 16),
        ("n" * 300 + "." + "e" * 17, "n" * 255),
        ("." + "n" * 300, "." + "n" * 254),
    ],
)
def test_plain_names(given_name: str, name: str) -> None:
    assert plain_name(given_name) == name


@given(st.text())
def test_any_name_becomes_a_plain_one(text: str) -> None:
    name = plain_name(text)
    assert len(name.encode()) <= 255
    assert not set("/\\\r\n\0") & set(name) and name not in (".", "..")
    assert plain_name(name) == name


@pytest.mark.parametrize(
    ("name", "declared", "media_type"),
    [
        ("a.pdf", "", "application/pdf"),
        ("a.PDF", "text/plain", "application/pdf"),
        ("a.md", BYTES, "text/markdown"),
        ("a.jsonl", "", "application/jsonl"),
        ("a.ts", "", "text/plain"),
        ("a.js", "", "text/javascript"),
        ("a.go", "application/x-go", "text/plain"),
        ("a.html", "", "text/html"),
        ("a.docx", "", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("a.xlsx", "", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
        ("a.pptx", "", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("a.markdown", "", "text/markdown"),
        ("a.yaml", "", "application/yaml"),
        ("a.yml", "", "application/yaml"),
        ("a.toml", "", "text/plain"),
        ("a.webp", "", "image/webp"),
        ("a.xml", "", "text/xml"),
        ("a.json", "", "application/json"),
        ("a.txt.gz", "text/plain", BYTES),
        ("a", "", BYTES),
        ("a", "image/png", "image/png"),
        ("a.unheard", "application/x-of", "application/x-of"),
        ("a.unheard", "no type", BYTES),
        ("a.unheard", "text/html\r\nset-cookie: x", BYTES),
    ],
)
def test_media_types(name: str, declared: str, media_type: str) -> None:
    assert media_type_of(name, declared) == media_type


@pytest.mark.parametrize(
    "name", ["a.md", "a.ts", "a.sh", "a.js", "a.go", "a.yaml", "a.json", "a.jsonl", "a.xml", "a.tex"]
)
def test_what_a_model_can_read_is_text_by_its_type(name: str) -> None:
    assert is_text(name, media_type_of(name, "application/x-whatever"))


@pytest.mark.parametrize(
    "ending",
    TEXT.split(),
)
def test_text_is_known_by_its_ending(ending: str) -> None:
    assert is_text(f"A{ending.upper()}", "") and is_text(f"a{ending}", BYTES)
    assert not is_text(f"a{ending}_", "")


@pytest.mark.parametrize(
    "media_type",
    ["text/x-new", "application/json", "application/xml", "application/yaml", "application/x-yaml"],
)
def test_text_is_known_by_its_type(media_type: str) -> None:
    assert is_text("a", media_type) and not is_text("a.txt", f"x{media_type}")


def test_what_a_model_cannot_read() -> None:
    assert not is_text("a.pdf", "application/pdf")
    assert not is_text("a.bin", BYTES)
    assert is_text("a.txt", BYTES) and is_text("a.txt", "")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "image/png"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "image/jpeg"),
        (b"GIF89a....", "image/gif"),
        (b"GIF87a....", "image/gif"),
        (b"GIF88a....", None),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x24\0\0\0WAVEfmt ", None),
        (b"<svg xmlns=", None),
        (b"%PDF-1.7", None),
        (b"", None),
    ],
)
def test_pictures_by_their_first_bytes(start: bytes, kind: str | None) -> None:
    assert image_type(start) == kind
    assert image_type(start[:FIRST_BYTES] + b"whatever follows") == kind
