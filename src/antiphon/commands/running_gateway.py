"""Finds a running gateway and asks it for its models, for commands that act as a client.

This module finds the gateway's address, the client's key and the first model. This module also makes the errors for a
gateway that does not answer. `health.py` has the health check of containers, and `run_client.py` starts a gateway.

Invariants: each wait has a timeout. This module sends the client's key only to the gateway, and follows no redirect.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from antiphon.commands.health import read_settings
from antiphon.commands.terminal import one_line
from antiphon.config.section import parse_address
from antiphon.errors import AntiphonError, ConfigError
from antiphon.supervisor.listen_address import join_address
from antiphon.types.json import decode_object

_CONNECT_SECONDS = 5.0
_ASK_SECONDS = 15.0
_SILENT_SECONDS = 600.0
_ERROR_BYTES = 64 * 1024
_MODELS_BYTES = _DOCUMENT_BYTES = 4 << 20
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_MESSAGE = 500


class GatewayError(AntiphonError):
    """Raised when the gateway refuses a request, or breaks off its answer. The message tells the user what to do."""


class NoGateway(GatewayError):
    """Raised when no gateway answers at the address."""


def gateway_url(url: str | None, config: Path | None) -> str:
    """The base URL of the gateway, which ends in `/v1` or in the path of `url`. If `url` is None, the function forms
    the base URL from the address in the setting `listen`. Raises `ConfigError`."""
    if url is not None:
        return _given_url(url)
    try:
        listen = str(read_settings(None if config is None else str(config), os.environ)["listen"])
    except (OSError, ValueError) as error:
        raise ConfigError(f"the settings file cannot be read ({type(error).__name__})") from None
    return listen_url(listen)


def listen_url(listen: str) -> str:
    """The base URL of a gateway on this machine with this setting `listen`. Raises `ConfigError`."""
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise ConfigError(f"listen: {error}") from None
    if host == "unix" or port == 0:
        raise ConfigError(
            f"listen: {listen} has no fixed port; give the gateway's address with --url http://HOST:PORT/v1"
        )
    return f"http://{join_address(_WILDCARDS.get(host, host), port)}/v1"


def _given_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
        parts = urlsplit("")
    if not right or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise ConfigError("--url: must be a base URL, for example http://127.0.0.1:8080/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{parts.scheme}://{parts.netloc}/v1"


def client_key(variable: str | None) -> str | None:
    """The client's key in this environment variable. The result is None if `variable` is None. Raises `ConfigError`."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(f"--key-env: the variable {variable} is not set")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"--key-env: the variable {variable} contains characters that a key cannot have")
    return key


class RunningGateway:
    """Requests to one gateway. `url` is its base URL."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def first_model(self) -> str:
        """The first model that the gateway lists. Raises `GatewayError`."""
        try:
            async with self.send("GET", "/models", seconds=_ASK_SECONDS) as answer:
                listed = decode_object(await _read(answer, _MODELS_BYTES)).get("data")
        except NoGateway:
            raise
        except GatewayError as error:
            raise GatewayError(f"{error}; with --model the command does not need the list of models") from None
        for model in listed if isinstance(listed, list) else ():
            if isinstance(model, dict) and isinstance(model.get("id"), str) and model["id"]:
                return str(model["id"])
        raise GatewayError(f"the gateway at {self.url} lists no model; name a model with --model")

    async def is_there(self) -> bool:
        """Whether a gateway answers at this address. Raises `GatewayError` if another server answers."""
        # Other servers have `/health` and `/v1` too, and llama.cpp listens on the same port by default.
        document = URL(self.url).with_path("/openapi.json")
        timeout = aiohttp.ClientTimeout(total=_ASK_SECONDS, sock_connect=_CONNECT_SECONDS)
        try:
            async with self._session.get(document, allow_redirects=False, timeout=timeout) as answer:
                title = decode_object(await _read(answer, _DOCUMENT_BYTES)).get("info")
        except aiohttp.ClientConnectorError:
            return False
        except (aiohttp.ClientError, TimeoutError, OSError):
            title = None
        if not isinstance(title, dict) or title.get("title") != "Antiphon":
            raise GatewayError(
                f"another server than Antiphon answers at {self.url}; choose another address with --listen, or name a "
                "running gateway with --url"
            )
        return True

    @asynccontextmanager
    async def send(
        self, method: str, path: str, body: object = None, *, seconds: float | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the answer, whose status is 200. `seconds` limits the time of the whole answer. If
        `seconds` is None, the method limits only the time in which no new bytes arrive. Raises `GatewayError`."""
        timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=_CONNECT_SECONDS, sock_read=None if seconds else _SILENT_SECONDS
        )
        try:
            async with self._session.request(
                method, self.url + path, json=body, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise GatewayError(_refusal(self.url, answer.status, await _read(answer, _ERROR_BYTES)))
                yield answer
        except aiohttp.ClientConnectorError as error:
            raise NoGateway(
                f"no gateway answers at {self.url} ({_reason(error.os_error)}); start one "
                "with 'antiphon up --upstream URL', or name its address with --url"
            ) from None
        except TimeoutError:
            raise GatewayError(
                f"the gateway at {self.url} sends nothing; look at its log, or try 'antiphon doctor'"
            ) from None
        except aiohttp.ClientError as error:
            raise GatewayError(
                f"the gateway at {self.url} broke off the answer ({type(error).__name__}); look at its log"
            ) from None


@asynccontextmanager
async def reached(url: str, key: str | None) -> AsyncIterator[RunningGateway]:
    """An HTTP client of the gateway with this base URL. The HTTP client sends this API key."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        yield RunningGateway(session, url)


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    """The body of an answer, truncated after about `most` bytes."""
    parts, size = [], 0
    async for part in answer.content.iter_any():
        parts.append(part)
        size += len(part)
        if size > most:
            break
    return b"".join(parts)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else "the name is unknown"


def _refusal(url: str, status: int, body: bytes) -> str:
    """The message for an error answer, with the gateway's own error message if the answer has one."""
    error = decode_object(body).get("error")
    words = error.get("message") if isinstance(error, dict) else None
    if not isinstance(words, str) or not words:
        return (
            f"{url} answers with status {status} and may not be a gateway; name the gateway's address with --url, "
            "for example http://127.0.0.1:8080/v1"
        )
    advice = "; give the name of the environment variable with your key: --key-env NAME" if status == 401 else ""
    return f"the gateway answers with status {status}: {one_line(words, _MESSAGE)}{advice}"
