"""Gateways for the end-to-end tests: one of each kind for all of them, each in front of a chat server of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Literal

import pytest
import pytest_asyncio

from tests.support.chat_server import ChatServer
from tests.support.gateway import Gateway, running, start_gateway

Door = Literal["relay", "relay-grpcio", "drive", "drive-grpcio", "http"]
DOORS: tuple[Door, ...] = ("relay", "relay-grpcio", "drive", "drive-grpcio", "http")

_FAST, _GRPCIO = ("--transport", "http2"), ("--transport", "grpcio")
_ARGUMENTS = {
    "relay": ("--mode", "relay", *_FAST),
    "relay-grpcio": ("--mode", "relay", *_GRPCIO),
    "drive": ("--mode", "drive", *_FAST),
    "drive-grpcio": ("--mode", "drive", *_GRPCIO),
    "http": ("--door", "http"),
}

# Files by URL come from servers of the tests, on loopback.
_ENVIRON = {"ANTIPHON_FETCH__ALLOW_PRIVATE": "127.0.0.1"}


@pytest.fixture(scope="module", autouse=True)
def no_gateway_outlives_its_module() -> Iterator[None]:
    """What tests that failed leave behind must not take the time of those after them."""
    yield
    for gateway in running:
        if gateway.process.returncode is None:
            gateway.process.kill()
    running.clear()


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    """A chat server of the test's own."""
    async with ChatServer() as made:
        yield made


@dataclass
class Setup:
    """One gateway and the chat server behind it."""

    door: Door
    gateway: Gateway
    server: ChatServer


class Setups:
    def __init__(self, folder: pytest.TempPathFactory) -> None:
        self._folder = folder
        self._made: dict[Door, Setup] = {}

    async def get(self, door: Door) -> Setup:
        if door not in self._made:
            server = ChatServer()
            await server.start()
            data = self._folder.mktemp(door)
            gateway = await start_gateway(server.base_url, data, *_ARGUMENTS[door], environ=_ENVIRON)
            running.remove(gateway)
            self._made[door] = Setup(door, gateway, server)
        return self._made[door]

    async def stop(self) -> None:
        for setup in self._made.values():
            status = await setup.gateway.stop()
            await setup.server.stop()
            assert status == 0, "\n".join(setup.gateway.log[-30:])


@pytest_asyncio.fixture(scope="package", loop_scope="session")
async def setups(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setups]:
    made = Setups(tmp_path_factory)
    yield made
    await made.stop()


@pytest_asyncio.fixture(params=DOORS, loop_scope="session")
async def setup(request: pytest.FixtureRequest, setups: Setups) -> AsyncIterator[Setup]:
    """Each kind of gateway in turn, its chat server as new."""
    made = await setups.get(request.param)
    made.server.forget()
    yield made


@pytest_asyncio.fixture(loop_scope="session")
async def doors(setups: Setups) -> dict[Door, Setup]:
    """All gateways."""
    return {door: await setups.get(door) for door in DOORS}
