"""Forms: parts and their headers, what is refused, and that it does not matter how a body is cut."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.api.multipart import FormDecoder, FormPart, PartData, PartEnd, boundary
from antiphon.errors import InvalidRequest

B = b"xYz"


def decode(body: bytes, *cuts: int, by: bytes = B) -> list[tuple[FormPart, bytes]]:
    """All parts of a body that comes in these pieces."""
    decoder = FormDecoder(by)
    found: list[tuple[FormPart, bytes]] = []
    whole = True
    edges = [0, *sorted(cuts), len(body)]
    for start, end in pairwise(edges):
        for event in decoder.feed(body[start:end]):
            if isinstance(event, FormPart):
                assert whole
                found.append((event, b""))
            elif isinstance(event, PartData):
                assert event.data
                found[-1] = (found[-1][0], found[-1][1] + event.data)
            whole = isinstance(event, PartEnd)
    decoder.finish()
    assert whole
    return found


def form(*parts: tuple[bytes, bytes], by: bytes = B) -> bytes:
    """A body of (disposition's parameters and further headers, content)."""
    return (
        b"".join(
            b"--%b\r\ncontent-disposition: form-data; %b\r\n\r\n%b\r\n" % (by, head, content) for head, content in parts
        )
        + b"--%b--\r\n" % by
    )


def name_of(parameters: str) -> str | None:
    """The file name that these parameters say."""
    ((part, _),) = decode(form((b'name="file"; ' + parameters.encode(), b"x")))
    return part.filename


def test_fields_and_files() -> None:
    body = form(
        (b'name="purpose"', b"user_data"),
        (b'name="file"; filename="a.txt"\r\nContent-Type: Text/Plain; charset=utf-8', b"line\r\n--xY\r\n\r\nend"),
        (b"name=empty", b""),
    )
    assert decode(body) == [
        (FormPart("purpose", None, ""), b"user_data"),
        (FormPart("file", "a.txt", "text/plain"), b"line\r\n--xY\r\n\r\nend"),
        (FormPart("empty", None, ""), b""),
    ]


def test_a_form_without_parts() -> None:
    assert decode(b"--xYz--\r\n") == []


def test_what_stands_before_and_behind_a_form_and_behind_a_boundary() -> None:
    body = (
        b"preamble\r\n--xYz \t\r\ncontent-disposition: form-data; name=a\r\n\r\n1\r\n--xYz--\r\nepilogue\r\n--xYz\r\n"
    )
    assert decode(body) == [(FormPart("a", None, ""), b"1")]


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('filename="a b.txt"', "a b.txt"),
        ("filename=plain.txt", "plain.txt"),
        ('filename="a;b=c.txt"', "a;b=c.txt"),
        ('FileName = "x.txt"', "x.txt"),
        (r'filename="say \"hi\".txt"', 'say "hi".txt'),
        (r'filename="C:\new\table.txt"', r"C:\new\table.txt"),
        ('filename="naïve 漢.txt"', "naïve 漢.txt"),
        ("filename*=UTF-8''na%C3%AFve.txt", "naïve.txt"),
        ("filename*=utf-8'de'a%20b.txt; filename=\"other.txt\"", "a b.txt"),
        ("filename=\"kept.txt\"; filename*=utf-16''%00a", "kept.txt"),
        ("filename*=iso-8859-1''%E4.txt", "ä.txt"),
        ('filename=""', ""),
        ("x=1", None),
    ],
)
def test_file_names(parameters: str, name: str | None) -> None:
    assert name_of(parameters) == name


def test_a_name_in_latin_1() -> None:
    ((part, _),) = decode(form((b'name="file"; filename="\xe4.txt"', b"x")))
    assert part.filename == "ä.txt"


@pytest.mark.parametrize(
    ("content_type", "found"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; Boundary="a b;c"', b"a b;c"),
        ("multipart/form-data;boundary=----WebKitFormBoundaryA1", b"----WebKitFormBoundaryA1"),
    ],
)
def test_boundaries(content_type: str, found: bytes) -> None:
    assert boundary(content_type) == found


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 415),
        ("application/json", 415),
        ("multipart/mixed; boundary=a", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=", 400),
        ("multipart/form-data; boundary=ä", 400),
        ("multipart/form-data; boundary=" + "a" * 201, 400),
    ],
)
def test_no_boundary(content_type: str | None, status: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        boundary(content_type)
    assert refused.value.status == status


WHOLE = form((b'name="a"', b"1"), (b'name="file"; filename="f"', b"content"))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form",
        WHOLE.replace(b"--xYz--", b"--xYz"),
        WHOLE[:-20],
        WHOLE.replace(b"content-disposition", b"content disposition"),
        WHOLE.replace(b"form-data", b"attachment"),
        WHOLE.replace(b"name=", b"game="),
        WHOLE.replace(b"--xYz\r\n", b"--xYz junk\r\n"),
        WHOLE.replace(b"\r\n\r\ncontent", b"\r\ncontent-transfer-encoding: base64\r\n\r\ncontent"),
        WHOLE.replace(b"\r\n\r\ncontent", b"\r\nx: " + b"y" * 10_000 + b"\r\n\r\ncontent"),
        b"x" * 20_000 + b"\r\n" + WHOLE,
        form(*[(b"name=a", b"")] * 65),
    ],
)
def test_what_is_no_form(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(body)
    assert refused.value.code == "invalid_body"
    with pytest.raises(InvalidRequest):
        decode(body, *range(1, len(body), 100))


def test_every_cut_gives_the_same_parts() -> None:
    body = form(
        (b'name="a"', b"1"), (b'name="file"; filename="f"', b"x\r\n--xY\r\n--xYY\r\r\n--\r\n--xy"), (b"name=b", b"")
    )
    parts = decode(body)
    for cut in range(len(body) + 1):
        assert decode(body, cut) == parts
    assert decode(body, *range(len(body))) == parts


@given(
    contents=st.lists(
        st.lists(st.sampled_from([b"\r", b"\n", b"-", b"--", b"\r\n--", b"xY", b"xy", b"q" * 50, b"\0"])).map(b"".join)
    ),
    seed=st.integers(),
)
def test_any_content_in_any_pieces(contents: list[bytes], seed: int) -> None:
    body = form(*[(b"name=a", content) for content in contents])
    chance = random.Random(seed)
    cuts = [chance.randrange(len(body)) for _ in range(chance.randrange(20))]
    assert [content for _, content in decode(body, *cuts)] == contents


@given(
    st.lists(
        st.sampled_from(
            [b"\r\n", b"--", b"xYz", b"--xYz", b"\r\n\r\n", WHOLE, b"content-disposition: form-data; name=a", b"\xff"]
        )
    )
)
def test_any_bytes_are_parts_or_a_400(pieces: list[bytes]) -> None:
    body = b"".join(pieces)

    def outcome(*cuts: int) -> object:
        try:
            return decode(body, *cuts)
        except InvalidRequest as refused:
            return refused.message

    assert outcome() == outcome(*range(len(body)))


def test_no_more_is_held_than_a_piece_and_a_boundary() -> None:
    decoder = FormDecoder(B)
    decoder.feed(b"--xYz\r\ncontent-disposition: form-data; name=a\r\n\r\n")
    held, piece = 0, b"\r\n--xY" * 10_000
    for _ in range(100):
        (event,) = decoder.feed(piece)
        assert isinstance(event, PartData)
        held += len(piece) - len(event.data)
        assert held < 20
