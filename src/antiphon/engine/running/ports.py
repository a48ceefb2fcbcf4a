"""The stores, upstreams and limits that one runner works with, as one value.

Lives here: which of them there are, and which a server may lack. Not here: their faces (`engine/ports/`), and their
users (`runner.py`, `loading.py`, `saving.py`).

Invariant: frozen; a view over another history or upstream is a copy made by `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from antiphon.config.limits import TimeoutSettings
from antiphon.engine.ports.hosted_tools import ToolRunner
from antiphon.engine.ports.state import FileFetcher, History, OwnerRoom, PromptStore, ResponseStore, Upstream
from antiphon.engine.running.background import Background
from antiphon.engine.running.held_keys import HeldKeys
from antiphon.engine.running.keyless_upstreams import Keyless
from antiphon.engine.running.locked_conversations import LockedConversations
from antiphon.engine.running.stored_files import StoredFiles
from antiphon.observability.metrics import Metrics


@dataclass(frozen=True)
class Ports:
    """What is None is not available on this server."""

    store: ResponseStore
    """The responses that are stored, whatever history there is over them."""
    upstream: Upstream
    """What makes the model calls."""
    _: KW_ONLY
    timeouts: TimeoutSettings
    metrics: Metrics
    background: Background
    conversations: LockedConversations
    prompts: PromptStore
    keys: HeldKeys
    tools: ToolRunner
    keyless: Keyless
    files: FileFetcher | None = None
    stored_files: StoredFiles | None = None
    owner_room: OwnerRoom | None = None
    over: History | None = None
    """A history over the store: a connection's memory, or a job's record."""
    keeps_locks: bool = False
    """Whether a response's conversation is its job's, and goes with that."""

    @property
    def history(self) -> History:
        """Where chains and items are read, and responses saved."""
        return self.store if self.over is None else self.over
