"""Fixtures that several integration tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.commands import Command, commands
from tests.support.http_door import OpenHttpDoor, open_http_door


@pytest.fixture
async def processes() -> AsyncIterator[list[Command]]:
    """The commands that a test starts. Those that still run at its end are killed."""
    async with commands() as made:
        yield made


@pytest.fixture
async def door() -> AsyncIterator[OpenHttpDoor]:
    """The HTTP server in this process, in front of a scripted chat server."""
    async with open_http_door() as opened:
        yield opened
