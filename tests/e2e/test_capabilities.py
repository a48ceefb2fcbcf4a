"""The capabilities reach a client through every door."""

from __future__ import annotations

import aiohttp
import pytest

from tests.e2e.conftest import Setup

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]


async def test_capabilities_are_answered_here(setup: Setup) -> None:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{setup.gateway.base_url}/antiphon/capabilities?model=demo-model") as answer:
            shown = await answer.json()
            assert answer.status == 200
        async with session.get(f"{setup.gateway.base_url}/antiphon/other") as answer:
            assert answer.status == 404
    assert (shown["model"], shown["profile"], shown["mode"]) == ("demo-model", "generic", "translate")
    assert shown["tools"]["tools.image_generation"]["support"] == "ignored"
    assert setup.server.requests == []
