"""Contents as answers: whatever a client asks for, it gets bytes of the file or a refusal, and the file is closed."""

from __future__ import annotations

import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from antiphon.api.file_content import FileParts, show_content
from antiphon.api.http import ApiRequest
from antiphon.engine.ports.files import FileFields, OpenFile, StoredFile
from antiphon.errors import ApiError
from tests.support.memory_files import MemoryFileStore

DATA = bytes(range(100))


class Counted:
    """An open file that knows whether it is."""

    def __init__(self, opened: OpenFile) -> None:
        self._opened = opened
        self.open = True

    @property
    def file(self) -> StoredFile:
        return self._opened.file

    @property
    def path(self) -> None:
        return None

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        assert self.open
        return await self._opened.read(start, limit)

    async def aclose(self) -> None:
        self.open = False

    async def __aenter__(self) -> OpenFile:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()


async def opened(data: bytes = DATA, name: str = "a.bin") -> Counted:
    store = MemoryFileStore(clock=time.time)
    async with store.uploading() as upload:
        await upload.write(data)
        await upload.keep("o", FileFields("file-a", name, "user_data", "text/plain", time.time()))
    found = await store.open("o", "file-a")
    assert found is not None
    return Counted(found)


_WORDS = ["bytes=", "bytes", "=", "-", ",", " ", "0", "7", "99", "100", "18446744073709551616", "lines", "\u0667"]


# How fast examples are made is up to the machine.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    given_range=st.lists(st.sampled_from(_WORDS)).map("".join) | st.text(),
    condition=st.none() | st.text(),
    method=st.sampled_from(["GET", "HEAD"]),
    size=st.sampled_from([0, 1, 100]),
)
async def test_any_range(given_range: str, condition: str | None, method: str, size: int) -> None:
    file = await opened(DATA[:size])
    headers = (("range", given_range), *((("if-range", condition),) if condition is not None else ()))
    request = ApiRequest(method, "/v1/files/file-a/content", headers=headers)
    try:
        answer = await show_content(request, file)
    except ApiError as refused:
        assert refused.status == 416 and dict(refused.headers)["content-range"] == f"bytes */{size}"
        assert not file.open
        return
    named = dict(answer.headers)
    body = b"".join([part async for part in answer.stream]) if answer.stream is not None else b""
    assert not file.open
    if method == "GET":
        assert int(named["content-length"]) == len(body)
    if answer.status == 200:
        assert body == (DATA[:size] if method == "GET" else b"")
    else:
        span, _, whole = named["content-range"].removeprefix("bytes ").partition("/")
        start, _, last = span.partition("-")
        assert answer.status == 206 and int(whole) == size
        assert int(named["content-length"]) == int(last) + 1 - int(start)
        assert method == "HEAD" or body == DATA[int(start) : int(last) + 1]


@given(st.text(min_size=1).filter(lambda name: "\0" not in name))
async def test_any_name_is_one_header(name: str) -> None:
    answer = await show_content(ApiRequest("HEAD", "/"), await opened(name=name.encode(errors="ignore").decode()))
    found = dict(answer.headers)["content-disposition"]
    assert found.isascii() and found.isprintable() and found.startswith('attachment; filename="')
    assert found.count('"') == 2


async def test_an_answer_that_nobody_begins_to_read_closes_the_file() -> None:
    file = await opened()
    answer = await show_content(ApiRequest("GET", "/"), file)
    assert isinstance(answer.stream, FileParts) and file.open
    await answer.stream.aclose()
    assert not file.open


class Gone(Counted):
    """One that cannot be read."""

    async def read(self, start: int = 0, limit: int | None = None) -> bytes:
        raise OSError("gone")


async def test_a_content_that_cannot_be_read_is_closed() -> None:
    file = Gone(await opened())
    answer = await show_content(ApiRequest("GET", "/"), file)
    assert isinstance(answer.stream, FileParts)
    with pytest.raises(OSError, match="gone"):
        await anext(answer.stream)
    await answer.stream.aclose()
    assert not file.open
