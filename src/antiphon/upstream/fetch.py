"""Fetches files that a client names by URL, and refuses URLs that lead to private networks.

Antiphon connects only to public addresses, and to the exceptions that the operator configures. The tables of non-public
networks come from IANA's special-purpose address registries (IPv4 and IPv6). They also contain the metadata addresses
of cloud providers.

This module checks the URL's scheme and port, and refuses a URL with credentials. It resolves the host and checks every
address. It then connects to one of the checked addresses, and the socket refuses any other address. This prevents DNS
rebinding, in which a host name resolves to a private address after the check. The target of a redirect must pass the
same checks. A fetch uses no cookies, proxies or credentials. The settings limit the total size, the total time, the
number of files and redirects, and the number of concurrent fetches.

Invariants: `fetch` never raises an error. The errors that it returns contain no address, and do not reveal whether a
private host name exists. An IPv4 address is public only if it is in no network of the IPv4 table. An IPv6 address is
public only if it is in 2000::/3 and in no network of the IPv6 table. An IPv6 address that contains an IPv4 address
(mapped, NAT64, 6to4, Teredo) is never public.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from mimetypes import MimeTypes
from urllib.parse import unquote

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from antiphon.config.limits import FetchSettings
from antiphon.engine.waiting import Pool
from antiphon.errors import ApiError, InvalidRequest, Unavailable
from antiphon.types.file_kinds import FetchedFile

_NOT_PUBLIC_4 = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # "This network" in IANA's registry.
        "10.0.0.0/8",
        "100.64.0.0/10",  # Carrier-grade NAT; cloud providers also use it for internal services.
        "127.0.0.0/8",
        "168.63.129.16/32",  # The address at which Azure's virtual machines reach their host.
        "169.254.0.0/16",  # Link-local; 169.254.169.254 is the metadata service of most clouds.
        "172.16.0.0/12",
        "192.0.0.0/24",  # Protocol assignments; 192.0.0.192 is Oracle's metadata service.
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",  # 6to4 relays.
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # Multicast, reserved and broadcast addresses.
    )
)
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Protocol assignments, which include Teredo.
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is public, according to IANA's special-purpose address registries.

    For example, `8.8.8.8` is public, and `10.0.0.1`, `169.254.169.254` and `::1` are not.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None or address not in _PUBLIC_6:
        return False
    return not any(address in network for network in _NOT_PUBLIC_6)


class AddressRule:
    """The addresses to which Antiphon may connect: public addresses, and the exceptions that the operator configures.

    `exceptions` are host names, addresses and networks in CIDR form. A host whose name is an exception may have any
    address. Raises `ValueError` for an exception that is no host name, no address and no network in CIDR form.

        rule = AddressRule(["files.internal", "10.1.0.0/16"])
        rule.allows("files.internal", "192.168.0.4") and rule.allows("example.com", "10.1.2.3")
    """

    def __init__(self, exceptions: Iterable[str] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        self._hosts: set[str] = set()
        for entry in exceptions:
            text = entry.strip().lower()
            try:
                self._networks.append(ip_network(text))
            except ValueError:
                if not text or any(ch in text for ch in "/:@?# *"):
                    raise ValueError(f"{entry!r} is no host name, address or network (such as 10.1.0.0/16)") from None
                self._hosts.add(text.rstrip("."))

    def is_named(self, host: str) -> bool:
        """Return whether this host is an exception: a listed host name, or an address in a listed network."""
        name = host.lower().rstrip(".")
        if name in self._hosts:
            return True
        try:
            return self._is_listed(ip_address(name))
        except ValueError:
            return False

    def allows(self, host: str, address: str) -> bool:
        """Return whether Antiphon may connect to `host` at the IP address `address`."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return is_public(found) or self._is_listed(found)

    def _is_listed(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


_log = structlog.get_logger(__name__)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""A function that resolves a host and a port to addresses. Raises `OSError` when the host has no address."""
LookUp = Callable[..., Sequence[tuple[int, int, int, str, tuple[str | int | bytes, ...]]]]
"""The signature of `socket.getaddrinfo`."""

_MAX_URL = 8_192
_MAX_NAME = 128
_AT_ONCE = 4
# A name server that does not answer occupies a thread until the system's resolver gives up.
_RESOLVERS = 32
_RESOLVER_SECONDS = 5.0
_HEADER_BYTES = 16 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAMED = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?")
_NUMERIC_END = re.compile(r"(^|\.)(\d+|0x[0-9a-f]*)\.?$")
_UNNAMEABLE = re.compile(r"[\x00-\x1f\x7f-\x9f/\\\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_GENERAL_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream", "application/x-download"})
# Media types come only from the standard library's table. The MIME files of a machine must not change which types
# Antiphon accepts.
_TYPES = MimeTypes(filenames=())
_TYPES.add_type("text/markdown", ".md")
_TYPES.add_type("application/yaml", ".yaml")
_TYPES.add_type("application/yaml", ".yml")


class GuardedFetcher:
    """Implements the port `FileFetcher`, and refuses URLs that lead to private networks."""

    def __init__(
        self,
        limits: FetchSettings,
        rule: AddressRule,
        *,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._limits = limits
        self._rule = rule
        self._tls = tls
        self._resolve = resolve or HostResolver()
        self._places = asyncio.Semaphore(limits.concurrent)

    async def fetch(
        self, urls: tuple[str, ...], fits: Callable[[str], bool] | None = None
    ) -> dict[str, FetchedFile | ApiError]:
        """Fetch all URLs of one request concurrently. Returns the file or the error for each URL.

        The fetcher fetches each URL once. A file's size counts once for each time the request names its URL, because
        the model gets the file that many times. `fits` returns whether the fetcher may fetch a URL or the target of a
        redirect.

        Each error is an `ApiError` with the status 400 and without `param`. The method returns errors and never raises
        them. The codes are `invalid_file_url`, `file_download_failed`, `file_too_large` and `unsupported_file`.
        """
        times = Counter(urls)
        urls = tuple(times)
        if len(urls) > self._limits.files:
            error = _refused(f"At most {self._limits.files} files can be fetched for one request.")
            return dict.fromkeys(urls, error)
        budget = _Budget(self._limits.total_bytes)
        # The semaphore `places` keeps one request with slow servers from using all slots of the process.
        places = asyncio.Semaphore(_AT_ONCE)
        deadline = asyncio.get_running_loop().time() + self._limits.seconds
        outcomes = await asyncio.gather(*(self._fetch(url, budget, deadline, places, fits) for url in urls))
        found = dict(zip(urls, outcomes, strict=True))
        left = self._limits.total_bytes
        for url, file in found.items():
            if not isinstance(file, FetchedFile):
                continue
            left -= len(file.data) * times[url]
            if left < 0:
                found[url] = _too_large(self._limits.total_bytes)
        return found

    async def _fetch(
        self, url: str, budget: _Budget, deadline: float, places: asyncio.Semaphore, fits: Callable[[str], bool] | None
    ) -> FetchedFile | ApiError:
        try:
            async with asyncio.timeout_at(deadline), places, self._places:
                return await self._follow(_read_url(url), budget, fits)
        except ApiError as error:
            return error
        except TimeoutError:
            return _failed(f"the download took longer than {self._limits.seconds:g} seconds.")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            _log.info("file_fetch_failed", error=type(error).__name__)
            return _failed("the file's server could not be reached, or ended the transfer early.")
        except Exception as error:
            _log.error("file_fetch_bug", error=type(error).__name__, exc_info=True)
            return _failed("an unexpected error occurred.")

    async def _follow(self, url: URL, budget: _Budget, fits: Callable[[str], bool] | None) -> FetchedFile:
        for _ in range(self._limits.redirects + 1):
            if fits is not None and not fits(str(url)):
                raise _refused("The request does not allow the URL's domain, or a domain to which the URL redirects.")
            found = await self._ask(url, budget)
            if isinstance(found, FetchedFile):
                return found
            url = found
        raise _failed(f"the URL was redirected more than {self._limits.redirects} times.")

    async def _ask(self, url: URL, budget: _Budget) -> FetchedFile | URL:
        """Send one request. Returns the file, or the target URL if the server answers with a redirect."""
        host, port = self._check_url(url)
        addresses = await self._addresses(host, port)
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses),
            use_dns_cache=False,
            force_close=True,
            ssl=self._tls or True,
            socket_factory=only_to(addresses),
        )
        session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),
            headers={
                "user-agent": "antiphon",
                "accept": ", ".join(kind for kind in self._limits.types if "*" not in kind[:-1]) + ", */*;q=0.1",
                "accept-encoding": "identity",
            },
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEADER_BYTES,
            max_field_size=_HEADER_BYTES,
        )
        async with session, session.get(url, allow_redirects=False) as answer:
            if answer.status in _REDIRECTS and (location := answer.headers.get("location")):
                return url.join(_read_url(location, relative=True)).with_fragment(None)
            if answer.status != 200:
                raise _failed(f"the file's server answered with status {answer.status}.")
            if answer.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                raise _failed("the file's server compressed the file, although the request did not allow compression.")
            name = _file_name(answer, url)
            kind = self._media_type(answer.content_type if "content-type" in answer.headers else "", name)
            return FetchedFile(name, kind, await _read_within(answer, budget))

    def _check_url(self, url: URL) -> tuple[str, int]:
        """Check everything about the URL that needs no name resolution. Return the URL's host and port. Raises
        `ApiError`."""
        host, port = (url.host or "").lower(), url.port
        if url.scheme not in ("http", "https"):
            raise _refused("This server fetches only https URLs. Send other files as 'file_data'.")
        if url.user is not None or url.password is not None:
            raise _refused("This server does not fetch a URL with credentials.")
        if not host or port is None or not _is_host(host):
            raise _refused("The URL has no valid host.")
        if self._rule.is_named(host):
            return host, port
        if url.scheme == "http" and not self._limits.http:
            raise _refused("This server fetches only https URLs.")
        if port not in self._limits.ports:
            raise _refused("The URL's port is not allowed.")
        return host, port

    async def _addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Resolve the host and return its addresses. Raises `ApiError` if Antiphon may not connect to one of them."""
        try:
            found = (host,) if _is_address(host) else tuple(await self._resolve(host, port))
        except (OSError, UnicodeError):
            found = ()
        if not found or not all(self._rule.allows(host, address) for address in found):
            _log.info("file_fetch_refused", host=host, addresses=list(found))
            # Names that do not exist and private names get the same error, so a client cannot discover private names.
            raise _refused("The URL's host does not exist or is not public.")
        return found

    def _media_type(self, sent: str, name: str) -> str:
        kind = sent.lower()
        if kind in _GENERAL_TYPES:
            kind = _TYPES.guess_type(name)[0] or "application/octet-stream"
        if not any(fnmatchcase(kind, pattern) for pattern in self._limits.types):
            raise InvalidRequest(
                f"The file at the given URL is of type {kind[:80]!r}, which is not supported.", code="unsupported_file"
            )
        return kind


class _Budget:
    """Counts the bytes that the files of one request may still have."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.left = total

    def take(self, size: int) -> None:
        """Subtract `size` bytes. If fewer bytes are left, raise the error `file_too_large` for the client."""
        self.left -= size
        if self.left < 0:
            raise _too_large(self.total)


def _too_large(total: int) -> ApiError:
    return _failed(
        f"the files of the request are together larger than {total} bytes (fetch.total_bytes). A file that is named "
        "twice counts twice.",
        code="file_too_large",
    )


async def _read_within(answer: aiohttp.ClientResponse, budget: _Budget) -> bytes:
    if (answer.content_length or 0) > budget.left:
        budget.take(answer.content_length or 0)
    parts: list[bytes] = []
    async for part in answer.content.iter_any():
        budget.take(len(part))
        parts.append(part)
    return b"".join(parts)


def _read_url(text: str, *, relative: bool = False) -> URL:
    """Parse and check a URL. Raises `InvalidRequest`."""
    if len(text) > _MAX_URL:
        raise _refused(f"The URL is longer than {_MAX_URL} characters.")
    try:
        url = URL(text.strip())
    except (ValueError, TypeError, IndexError):  # yarl raises IndexError for an empty host.
        raise _refused("The URL is not valid.") from None
    if not relative and not url.absolute:
        raise _refused("The URL is not a complete https URL.")
    return url.with_fragment(None)


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_host(host: str) -> bool:
    """Return whether the host is a valid host name, or an IP address in its usual form. IPv4 addresses in a short,
    octal or hexadecimal form are invalid, and so are IPv6 zones."""
    if _is_address(host):
        return "%" not in host
    return len(host) <= 253 and bool(_NAMED.fullmatch(host)) and not _NUMERIC_END.search(host)


def _file_name(answer: aiohttp.ClientResponse, url: URL) -> str:
    """Return the file's name from the response or the URL, without path separators and control characters."""
    try:
        given = answer.content_disposition
        name = (given.filename if given is not None else None) or unquote(url.path.rpartition("/")[2])
    except ValueError:
        name = ""
    name = _UNNAMEABLE.sub("_", name).strip(" .")
    if len(name) > _MAX_NAME:
        stem, dot, extension = name.rpartition(".")
        name = stem[: _MAX_NAME - 12] + dot + extension[:11] if dot else name[:_MAX_NAME]
    return name or "file"


class _Pinned(AbstractResolver):
    """Resolves every host name to the addresses that Antiphon has already checked."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing. aiohttp requires this method."""


def only_to(addresses: tuple[str, ...]) -> Callable[..., socket.socket]:
    """Return a socket factory for `aiohttp.TCPConnector`, which refuses to connect to any other address.

    This is the last check, after all name resolution. The factory raises `OSError` for another address.
    """
    allowed = {ip_address(address) for address in addresses}

    def make(info: tuple[int, int, int, str, tuple[str | int, ...]]) -> socket.socket:
        family, kind, protocol, _, target = info
        if ip_address(target[0]) not in allowed:
            raise OSError("Antiphon has not checked this address")
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made

    return make


class HostResolver:
    """Resolves a host to all addresses that the system's resolver knows.

    The system's resolver blocks, so it runs in separate threads. Raises `OSError` when the host has no address or when
    no thread is free.
    """

    def __init__(
        self, limit: int = _RESOLVERS, seconds: float = _RESOLVER_SECONDS, *, ask: LookUp = socket.getaddrinfo
    ) -> None:
        """`ask` is the system's resolver function, which blocks."""
        self._ask = ask
        self._threads = Pool("names", limit, seconds)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        ask = partial(self._ask, host, port, type=socket.SOCK_STREAM)
        try:
            found = await self._threads.run(ask)
        except Unavailable:
            raise OSError("all threads that resolve names are busy") from None
        return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_file_url")


def _failed(reason: str, code: str = "file_download_failed") -> InvalidRequest:
    return InvalidRequest(f"The file at the given URL could not be fetched: {reason}", code=code)
