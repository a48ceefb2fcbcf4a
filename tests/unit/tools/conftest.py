"""What several tests of tools have in common."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.chat_server import ChatServer


@pytest.fixture
async def service() -> AsyncIterator[ChatServer]:
    """A scripted search service."""
    async with ChatServer() as server:
        yield server
