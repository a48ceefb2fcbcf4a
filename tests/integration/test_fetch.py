"""Files by URL, from real servers on loopback (which only a test's exception allows)."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.app.upstreams import make_fetcher
from antiphon.config.limits import FetchSettings
from antiphon.config.settings import load_settings
from antiphon.errors import ApiError, ConfigError
from antiphon.types.file_kinds import FetchedFile
from antiphon.upstream.fetch import AddressRule, GuardedFetcher, only_to
from antiphon.upstream.fetch import HostResolver as SystemNames
from tests.support.chat_server import Answer, ChatServer, Close, Raw, Reset, Wait, answer, never
from tests.support.tls import client_context, server_context

TEXT = (("content-type", "text/plain; charset=utf-8"),)
LOOPBACK = AddressRule(["127.0.0.0/8"])


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with ChatServer(base_path="") as made:
        yield made


def plain(body: bytes = b"content", headers: Sequence[tuple[str, str]] = TEXT, status: int = 200) -> Answer:
    return answer(status, headers, [body], framing="length")


def moved(location: str, status: int = 302) -> Answer:
    return answer(status, (("location", location),), [], framing="length")


class Names:
    """A resolver that knows what the test says; a list is answered one after another, to rebind."""

    def __init__(self, **hosts: Any) -> None:
        self._hosts = {name.replace("_", "."): value for name, value in hosts.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        found = self._hosts.get(host)
        if found is None:
            raise OSError("no such name")
        if isinstance(found, list):
            found = found.pop(0)
        return found if isinstance(found, tuple) else (found,)


async def fetch(url: str, rule: AddressRule = LOOPBACK, resolve: Any = None, **limits: Any) -> FetchedFile | ApiError:
    fetcher = GuardedFetcher(FetchSettings(**limits), rule, tls=client_context(), resolve=resolve)
    return (await fetcher.fetch((url,)))[url]


def error_of(outcome: FetchedFile | ApiError, code: str) -> str:
    assert isinstance(outcome, ApiError), outcome
    assert (outcome.status, outcome.type, outcome.code, outcome.param) == (400, "invalid_request_error", code, None)
    assert "127.0.0" not in outcome.message and "10." not in outcome.message and "169." not in outcome.message
    return outcome.message


async def test_a_file(server: ChatServer) -> None:
    server.script(plain(b"hello"))
    assert await fetch(server.url("/a/notes.txt?x=1#top")) == FetchedFile("notes.txt", "text/plain", b"hello")
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", "/a/notes.txt?x=1")
    names = {name for name, _ in request.headers}
    assert names == {"host", "connection", "user-agent", "accept", "accept-encoding"}
    assert request.header("accept-encoding") == "identity" and request.header("user-agent") == "antiphon"


async def test_a_fetch_says_which_types_it_takes_and_asks_no_proxy(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.script(plain())
    types = ("text/plain", "image/*", "*/pdf")
    assert isinstance(await fetch(server.url("/x"), types=types), FetchedFile)
    assert server.requests[0].header("accept") == "text/plain, image/*, */*;q=0.1"


@pytest.mark.parametrize(("length", "asked"), [(8_192, ["files.test"]), (8_193, [])])
async def test_a_url_may_be_so_long(length: int, asked: list[str]) -> None:
    start, names = "https://files.test/", Names(files_test="10.0.0.1")
    error_of(await fetch(start + "x" * (length - len(start)), AddressRule(), names), "invalid_file_url")
    assert names.asked == asked


async def test_several_files_at_once(server: ChatServer) -> None:
    gate = asyncio.Event()
    waiting = 0

    def respond(_: Any) -> Answer:
        nonlocal waiting
        waiting += 1
        if waiting == 3:
            gate.set()
        return answer(200, TEXT, [Wait(gate), b"x"])

    server.default = respond
    urls = tuple(server.url(f"/{number}") for number in range(3))
    found = await GuardedFetcher(FetchSettings(), LOOPBACK).fetch(urls)
    assert [found[url] for url in urls] == [FetchedFile(str(n), "text/plain", b"x") for n in range(3)]


async def test_over_tls_with_the_name_of_the_url() -> None:
    async with ChatServer(tls=server_context()) as server:
        server.script(plain())
        url = f"https://chat.test:{server.port}/x"
        rule = AddressRule(["chat.test"])
        assert isinstance(await fetch(url, rule, Names(chat_test="127.0.0.1")), FetchedFile)
        wrong = f"https://other.test:{server.port}/x"
        error_of(await fetch(wrong, AddressRule(["other.test"]), Names(other_test="127.0.0.1")), "file_download_failed")


# What is asked for


@pytest.mark.parametrize(
    "url",
    [
        "",
        "x",
        "/etc/passwd",
        "file:///etc/passwd",
        "ftp://files.test/x",
        "gopher://files.test/x",
        "data:text/plain,hello",
        "javascript:alert(1)",
        "https://",
        "https:///x",
        "https://user@files.test/x",
        "https://user:secret@files.test/x",
        "https://:secret@files.test/x",
        "http://files.test/x",
        "https://files.test:22/x",
        "https://files.test:8443/x",
        "https://files.test:99999/x",
        "https://files.test/" + "x" * 10_000,
        "https://fi les.test/",
        "https://[::1/x",
        "https://[fe80::1%25eth0]/x",
        # Spellings of 127.0.0.1 that resolvers know and no list does.
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0177.0.0.1/",
        "https://127.1/",
        "https://127.0.0.1.:443/",
        "https://127.0.0.0x1/",
        "https://①②⑦.0.0.1/",
        "https://-bad-.test/",
        "https://a..b/",
    ],
)
async def test_urls_that_are_refused_by_themselves(url: str) -> None:
    names = Names(files_test="8.8.8.8")
    message = error_of(await fetch(url, AddressRule(), names), "invalid_file_url")
    assert "secret" not in message and names.asked == []


@given(st.text(max_size=60) | st.from_regex(r"https?://[\[\]:@/?#.%a-z0-9-]{0,30}", fullmatch=True))
async def test_any_text_is_refused_or_asked_for(text: str) -> None:
    # No name resolves here, so that nothing is ever connected to.
    outcome = await fetch(text, AddressRule(), Names(), ports=())
    assert isinstance(outcome, ApiError) and outcome.code == "invalid_file_url"


async def test_plain_http_is_a_setting() -> None:
    error_of(await fetch("http://files.test/", AddressRule(), Names(files_test="10.0.0.1")), "invalid_file_url")
    names = Names(files_test="10.0.0.1")
    await fetch("http://files.test/", AddressRule(), names, http=True)
    assert names.asked == ["files.test"]


@pytest.mark.parametrize(
    "addresses",
    [
        "127.0.0.1",
        "10.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a00:1",
        ("8.8.8.8", "10.0.0.1"),
        (),
    ],
    ids=str,
)
async def test_a_name_with_any_address_that_is_not_public_is_refused(addresses: Any) -> None:
    outcome = await fetch("https://files.test/x", AddressRule(), Names(files_test=addresses))
    assert error_of(outcome, "invalid_file_url") == "The URL's host does not exist or is not public."


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "[::1]", "[::ffff:7f00:1]", "[fd00::1]"])
async def test_addresses_in_urls_are_judged_alike(host: str) -> None:
    message = error_of(await fetch(f"https://{host}/x", AddressRule()), "invalid_file_url")
    assert message == "The URL's host does not exist or is not public."


async def test_nobody_learns_which_private_names_exist() -> None:
    names = Names(intranet="10.0.0.1")
    exists = await fetch("https://intranet/", AddressRule(), names)
    missing = await fetch("https://nothing/", AddressRule(), names)
    assert error_of(exists, "invalid_file_url") == error_of(missing, "invalid_file_url")


# Where the connection goes


async def test_the_connection_goes_where_was_looked(server: ChatServer) -> None:
    """The system knows no such name: only the address that was checked can have been used."""
    server.script(plain())
    names = Names(files_test="127.0.0.1")
    found = await fetch(f"http://files.test:{server.port}/x", AddressRule(["files.test"]), names)
    assert isinstance(found, FetchedFile) and names.asked == ["files.test"]
    assert server.requests[0].header("host") == f"files.test:{server.port}"


async def test_a_name_that_changes_its_address_gains_nothing(server: ChatServer) -> None:
    """Public when it is checked, loopback a moment later: it is asked for once, and connected to what was checked."""
    names = Names(rebind_test=["203.0.114.1", "127.0.0.1"])
    refused: list[str] = []
    real = only_to

    def watched(addresses: tuple[str, ...]) -> Callable[..., Any]:
        def make(info: Any) -> Any:
            refused.append(info[4][0])
            raise OSError("no network in tests")

        real(addresses)
        return make

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("antiphon.upstream.fetch.only_to", watched)
        outcome = await fetch(
            f"http://rebind.test:{server.port}/x", AddressRule(), names, http=True, ports=(server.port,)
        )
    error_of(outcome, "file_download_failed")
    assert names.asked == ["rebind.test"] and refused == ["203.0.114.1"] and not server.requests


def test_no_socket_is_made_for_another_address() -> None:
    make = only_to(("8.8.8.8", "2606:4700::1111"))
    with pytest.raises(OSError, match="not checked"):
        make((2, 1, 6, "", ("127.0.0.1", 443)))
    with pytest.raises(OSError, match="not checked"):
        make((10, 1, 6, "", ("::ffff:8.8.8.8", 443, 0, 0)))
    make((2, 1, 6, "", ("8.8.8.8", 443))).close()


async def test_names_are_resolved_in_threads_of_their_own() -> None:
    """A slow name server of a client's must not keep the loop's threads, which resolve the upstream's name."""
    asked: list[tuple[str, str]] = []

    def slow(host: str, port: int, **_: Any) -> list[Any]:
        asked.append((host, threading.current_thread().name))
        return [(2, 1, 6, "", ("10.0.0.1", port)), (10, 1, 6, "", ("fe80::1", port, 0, 0))]

    found = await fetch("https://files.test/x", AddressRule(), resolve=SystemNames(ask=slow))
    error_of(found, "invalid_file_url")
    assert [host for host, _ in asked] == ["files.test"] and asked[0][1].startswith("antiphon-names")


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(server: ChatServer, status: int) -> None:
    server.script(moved("../b.txt", status), plain(b"there"))
    found = await fetch(server.url("/x/a"))
    assert found == FetchedFile("b.txt", "text/plain", b"there")
    assert [request.path for request in server.requests] == ["/x/a", "/b.txt"]


async def test_a_redirect_to_a_private_address_is_refused(server: ChatServer) -> None:
    for target in ("http://10.0.0.1/x", "https://169.254.169.254/latest/", "https://[::1]/", "//internal/x"):
        server.script(moved(target))
        error_of(await fetch(server.url("/x"), resolve=Names(internal="10.0.0.1")), "invalid_file_url")
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://8.8.8.8/", "https://u:p@8.8.8.8/", "https://8.8.8.8:22/", "http://8.8.8.8/"]
)
async def test_a_redirect_is_judged_like_the_first_url(server: ChatServer, target: str) -> None:
    server.script(moved(target))
    error_of(await fetch(server.url("/x")), "invalid_file_url")


async def test_redirects_have_a_limit(server: ChatServer) -> None:
    server.default = lambda _: moved("/again")
    assert "more than 2 times" in error_of(await fetch(server.url("/x"), redirects=2), "file_download_failed")
    assert len(server.requests) == 3


# What comes back


@pytest.mark.parametrize("status", [204, 206, 304, 401, 404, 500])
async def test_anything_but_200_is_a_failure(server: ChatServer, status: int) -> None:
    server.script(answer(status, TEXT, [], framing="length"))
    assert str(status) in error_of(await fetch(server.url("/x")), "file_download_failed")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_the_size_is_limited_while_it_comes(server: ChatServer, framing: str) -> None:
    server.script(answer(200, TEXT, [b"x" * 1000] * 10, framing=framing))
    assert isinstance(await fetch(server.url("/x"), total_bytes=10_000), FetchedFile)
    server.script(answer(200, TEXT, [b"x" * 1000] * 10, framing=framing))
    assert "9999 bytes" in error_of(await fetch(server.url("/x"), total_bytes=9_999), "file_too_large")


async def test_a_body_without_an_end_is_left_at_the_limit(server: ChatServer) -> None:
    server.script(answer(200, TEXT, [b"x" * 100_000, *[Wait(asyncio.Event())]]))
    error_of(await fetch(server.url("/x"), total_bytes=50_000), "file_too_large")
    await server.requests[0].gone.wait()


async def test_the_size_counts_for_all_files_together(server: ChatServer) -> None:
    server.default = lambda _: plain(b"x" * 600)
    urls = (server.url("/a"), server.url("/b"))
    found = await GuardedFetcher(FetchSettings(total_bytes=1_000), LOOPBACK).fetch(urls)
    assert sorted(type(outcome).__name__ for outcome in found.values()) == ["FetchedFile", "InvalidRequest"]


async def test_a_file_counts_as_often_as_it_is_named(server: ChatServer) -> None:
    url = server.url("/x")
    server.default = lambda _: plain(b"x" * 600)
    limits = FetchSettings(total_bytes=1_500, files=1)
    assert isinstance((await GuardedFetcher(limits, LOOPBACK).fetch((url, url)))[url], FetchedFile)
    refused = (await GuardedFetcher(limits, LOOPBACK).fetch((url,) * 3))[url]
    assert "1500 bytes" in error_of(refused, "file_too_large") and len(server.requests) == 2


async def test_more_files_than_allowed_are_refused_before_any_is_fetched(server: ChatServer) -> None:
    urls = tuple(server.url(f"/{number}") for number in range(3))
    found = await GuardedFetcher(FetchSettings(files=2), LOOPBACK).fetch(urls)
    assert all("At most 2 files" in error_of(found[url], "invalid_file_url") for url in urls)
    assert not server.requests


async def test_a_silent_server_ends_with_the_time(server: ChatServer) -> None:
    server.script(never())
    assert "0.05 seconds" in error_of(await fetch(server.url("/x"), seconds=0.05), "file_download_failed")
    await server.requests[0].gone.wait()


async def test_a_server_that_drips_ends_with_the_time(server: ChatServer) -> None:
    server.script(answer(200, TEXT, [b"x", Wait(asyncio.Event())]))
    error_of(await fetch(server.url("/x"), seconds=0.05), "file_download_failed")


async def test_waiting_for_a_place_counts_as_time(server: ChatServer) -> None:
    server.default = lambda _: never()
    urls = (server.url("/a"), server.url("/b"))
    found = await GuardedFetcher(FetchSettings(concurrent=1, seconds=0.05), LOOPBACK).fetch(urls)
    assert all("seconds" in error_of(found[url], "file_download_failed") for url in urls)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "script",
    [
        answer(parts=[Reset()], framing="none"),
        answer(parts=[Close()], framing="none"),
        answer(parts=[Raw(b"nonsense\r\n\r\n")], framing="none"),
        answer(parts=[Raw(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n")], framing="none"),
        answer(200, TEXT, [b"abc", Reset()]),
        answer(200, TEXT, [b"abc", Close()], framing="length", announced=10),
        answer(302, (("location", "http://[bad"),), [], framing="length"),
    ],
    ids=["reset", "closed", "no HTTP", "huge header", "cut", "short", "bad location"],
)
async def test_a_broken_server_is_a_failure(server: ChatServer, script: Answer) -> None:
    server.script(script)
    outcome = await fetch(server.url("/x"), seconds=5)
    assert isinstance(outcome, ApiError) and outcome.status == 400


async def test_a_refused_connection_is_a_failure(server: ChatServer) -> None:
    await server.stop()
    error_of(await fetch(server.url("/x")), "file_download_failed")


@pytest.mark.parametrize(
    ("sent", "path", "kind"),
    [
        ("text/markdown", "/x", "text/markdown"),
        ("TEXT/HTML; charset=x", "/x", "text/html"),
        ("application/pdf", "/x", "application/pdf"),
        ("application/octet-stream", "/x.pdf", "application/pdf"),
        ("binary/octet-stream", "/x.MD", "text/markdown"),
        ("application/x-download", "/x.json", "application/json"),
        ("", "/x.yaml", "application/yaml"),
        ("", "/x.yml", "application/yaml"),
        ("", "/x.json", "application/json"),
    ],
)
async def test_types_that_are_accepted(server: ChatServer, sent: str, path: str, kind: str) -> None:
    server.script(plain(headers=(("content-type", sent),) if sent else ()))
    found = await fetch(server.url(path))
    assert isinstance(found, FetchedFile) and found.media_type == kind


@pytest.mark.parametrize(
    ("sent", "path"),
    [
        ("image/png", "/x"),
        ("application/zip", "/x.pdf"),
        ("application/octet-stream", "/x.exe"),
        ("", "/x"),
        ("{}", "/x.bin"),
    ],
)
async def test_types_that_are_not(server: ChatServer, sent: str, path: str) -> None:
    server.script(plain(headers=(("content-type", sent),) if sent else ()))
    error_of(await fetch(server.url(path)), "unsupported_file")


async def test_a_compressed_answer_that_nobody_asked_for_is_refused(server: ChatServer) -> None:
    server.script(plain(headers=(*TEXT, ("content-encoding", "gzip"))))
    error_of(await fetch(server.url("/x")), "file_download_failed")


@pytest.mark.parametrize(
    ("disposition", "path", "name"),
    [
        ("", "/dir/report%20final.pdf", "report final.pdf"),
        ("", "/", "file"),
        ("", "/a%2F..%2Fb.txt", "b.txt"),
        ("", "/%00%0a..", "__"),
        ('attachment; filename="x.txt"', "/y", "x.txt"),
        ('attachment; filename="../../etc/passwd"', "/y", "_.._etc_passwd"),
        ("attachment; filename*=UTF-8''na%C3%AFve.txt", "/y", "naïve.txt"),
        ("attachment", "/y.txt", "y.txt"),
        ("", "/" + "n" * 300 + ".pdf", "n" * 116 + ".pdf"),
        ("", "/" + "n" * 124 + ".pdf", "n" * 124 + ".pdf"),
        ("", "/" + "n" * 125 + ".pdf", "n" * 116 + ".pdf"),
        ("", "/" + "n" * 300, "n" * 128),
        ("", "/n." + "e" * 300, "n." + "e" * 11),
        ("", "/.%20x.%20", "x"),
    ],
)
async def test_a_name_is_plain(server: ChatServer, disposition: str, path: str, name: str) -> None:
    headers = (*TEXT, ("content-disposition", disposition)) if disposition else TEXT
    server.script(plain(headers=headers))
    found = await fetch(server.url(path))
    assert isinstance(found, FetchedFile) and found.name == name


async def test_a_client_that_leaves_ends_the_fetch(server: ChatServer) -> None:
    server.script(never())
    task = asyncio.create_task(fetch(server.url("/x")))
    request = await server.received()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await request.gone.wait()


# Settings


async def test_from_the_settings(server: ChatServer) -> None:
    server.script(plain())
    settings = load_settings({"fetch": {"allow_private": ["127.0.0.1"]}})
    fetcher = make_fetcher(settings.fetch)
    assert fetcher is not None
    url = server.url("/x")
    assert isinstance((await fetcher.fetch((url,)))[url], FetchedFile)


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"fetch\.allow_private: '10\.0\.0\.1/8'"):
        make_fetcher(load_settings({"fetch": {"allow_private": ["10.0.0.1/8"]}}).fetch)
    with pytest.raises(ConfigError, match=r"fetch\.ca_file"):
        make_fetcher(load_settings({"fetch": {"ca_file": "/nothing"}}).fetch)


async def test_names_whose_servers_do_not_answer_are_refused_and_not_queued() -> None:
    """A client may name servers of its own; whose name is asked behind theirs learns soon that it cannot be."""
    go_on = threading.Event()

    def slow(host: str, *given: Any, **named: Any) -> Any:
        if host.endswith(".slow.test"):
            assert go_on.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return socket.getaddrinfo(host, *given, **named)

    names, others = SystemNames(limit=2, seconds=0.05, ask=slow), SystemNames(ask=slow)
    stuck = [asyncio.ensure_future(names(f"{number}.slow.test", 80)) for number in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OSError, match="all threads that resolve names are busy"):
        await names("localhost", 80)
    assert "127.0.0.1" in await others("localhost", 80)
    go_on.set()
    assert all(isinstance(each, OSError) for each in await asyncio.gather(*stuck, return_exceptions=True))
    assert "127.0.0.1" in await names("localhost", 80)
