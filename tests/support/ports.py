"""Builds the ports of a runner for tests. A port that the test does not pass does nothing, or stores its data in
memory.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any, cast

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BackgroundSettings
from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.actions import OnceOnly
from antiphon.engine.ports.state import Upstream
from antiphon.engine.running.background import Background, Keyless
from antiphon.engine.running.followers import Followers
from antiphon.engine.running.idempotency import HeldKeys
from antiphon.engine.running.loading import LockedConversations, Ports
from antiphon.engine.running.signal_watcher import SignalWatcher
from antiphon.observability.metrics import Metrics
from antiphon.stores.idempotency import IdempotencyStore
from antiphon.stores.leases import Leases
from antiphon.stores.responses import ResponseStore
from antiphon.tools.box import Toolbox
from tests.support.memory_conversations import MemoryConversationStore
from tests.support.memory_jobs import MemoryJobStore
from tests.support.memory_prompts import MemoryPromptStore
from tests.support.memory_signals import MemorySignals
from tests.support.memory_store import MemoryResponseStore


class NoKeys(IdempotencyStore):
    """An `IdempotencyStore` that stores nothing: every key is free, and every approval unused."""

    def __init__(self) -> None:
        """Create a store without tables."""

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> str | None:
        return None

    async def made(self, once: OnceOnly) -> str | None:
        return None

    async def release(self, once: OnceOnly, object_id: str) -> None: ...

    async def stay(self, once: OnceOnly, object_id: str) -> None: ...

    async def spend(self, owner: str, requests: Collection[str], response_id: str) -> dict[str, str]:
        return {}

    async def unspend(self, owner: str, response_id: str) -> None: ...

    async def claim_calls(
        self, owner: str, response_id: str, record: bytes, seconds: float, *, by: str, once: OnceOnly | None = None
    ) -> bool:
        return True

    async def claimed_calls(self, owner: str, response_id: str) -> bytes | None:
        return None

    async def left_calls(self) -> list[tuple[str, str]]:
        return []

    async def end_calls(self, owner: str, response_id: str) -> None: ...

    async def renew(self, holders: Sequence[str], seconds: float) -> frozenset[str]:
        return frozenset(holders)

    async def sweep(self) -> tuple[int]:
        return (0,)


class KeyStore(NoKeys):
    """An `IdempotencyStore` in which every key is free. `held` has the keys that responses hold."""

    def __init__(self) -> None:
        self.held: list[str] = []

    async def claim(self, once: OnceOnly, object_id: str, seconds: float) -> None:
        self.held.append(once.key)

    async def release(self, once: OnceOnly, object_id: str) -> None:
        self.held.remove(once.key)


def make_ports(store: ResponseStore | None = None, upstream: Upstream | None = None, **given: Any) -> Ports:
    """The ports with these arguments, and defaults for all others."""
    kept = store or MemoryResponseStore()
    jobs = MemoryJobStore(MemoryResponseStore())
    followers = Followers(jobs, SignalWatcher(MemorySignals(jobs)))
    others: dict[str, Any] = {
        "timeouts": TimeoutSettings(),
        "metrics": Metrics(),
        "background": Background(jobs, kept, followers, BackgroundSettings()),
        "conversations": LockedConversations(MemoryConversationStore(clock=time.time), Leases()),
        "prompts": MemoryPromptStore(clock=time.time),
        "keys": HeldKeys(NoKeys(), Leases()),
        "tools": Toolbox((), ToolSettings()),
        "keyless": Keyless(cast(Any, upstream)),
    }
    return Ports(kept, cast(Any, upstream), **(others | {name: one for name, one in given.items() if one is not None}))
