"""What a backend is: what it is opened with, and what it gives.

Lives here: the values that all backends share. Not here: the choice of one (`__init__.py`), any of them.

Invariant: nothing here names a backend; what others use of one is a port (`engine/ports/`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Required, TypedDict

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import RetentionSettings
from antiphon.engine.ports.container_rows import SharedContainers
from antiphon.engine.ports.figures import StoreFigures
from antiphon.engine.ports.files import FileStore
from antiphon.engine.ports.idempotency import IdempotencyStore
from antiphon.engine.ports.indexing import ChunkIndex, Ingestion
from antiphon.engine.ports.jobs import JobStore
from antiphon.engine.ports.retention import Retention
from antiphon.engine.ports.signals import Signals
from antiphon.engine.ports.state import ConversationStore, OwnerRoom, PromptStore, ResponseStore
from antiphon.engine.ports.usage import UsageStore
from antiphon.engine.ports.vector_stores import VectorStores

HISTORY_BYTES = 64 << 20
PAGE_BYTES = 16 << 20
MATRIX_BYTES = 1 << 30
KEEP_SECONDS = 86_400.0
FOR_EVER = RetentionSettings(events=None)


class StoreOptions(TypedDict, total=False):
    """What every backend is opened with."""

    chain_items: Required[int]
    """The most items of history that one request may bring."""
    history_bytes: int
    """The most bytes of it."""
    page_bytes: int
    """Where a page of a list ends, whatever its rows."""
    owner_file_bytes: int | None
    """The most that one owner's files may take."""
    upload_lease: float
    """Seconds after which an upload that was not heard of counts as broken off."""
    owner_bytes: int | None
    """The most that all else of an owner's may take."""
    kept: RetentionSettings
    """How long things are kept."""
    timeouts: TimeoutSettings
    """How long the database is waited for."""
    keep_keys: float
    """Seconds for which an idempotency key is remembered."""


@dataclass(frozen=True)
class VectorDatabase(ABC):
    """Vector stores: what clients see, the work, what a search reads, and the keys of requests that made something."""

    stores: VectorStores
    ingestion: Ingestion
    index: ChunkIndex
    keys: IdempotencyStore

    @property
    @abstractmethod
    def figures(self) -> tuple[StoreFigures, ...]:
        """Of its own database; none where it shares one with the other stores."""

    @abstractmethod
    async def check_vectors(self) -> None:
        """Make sure that vectors can be kept; words always can. Raises `StoreError` with what to do about it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then close what is its own."""


@dataclass(frozen=True)
class Stores(ABC):
    """Everything that is kept, but for vector stores, which are opened when they are wanted."""

    responses: ResponseStore
    conversations: ConversationStore
    background: JobStore
    signals: Signals
    prompts: PromptStore
    files: FileStore
    retention: Retention
    keys: IdempotencyStore
    usage: UsageStore
    owner_room: OwnerRoom | None

    @property
    @abstractmethod
    def figures(self) -> tuple[StoreFigures, ...]:
        """Of every database that these stores are in."""

    @property
    def containers(self) -> SharedContainers | None:
        """Containers in which code runs, where several machines share this state; otherwise they lie in the data
        folder."""
        return None

    @abstractmethod
    def has_vectors(self) -> bool:
        """Whether there may be vector stores: where there are none, opening them makes their database."""

    @abstractmethod
    async def open_vectors(self, *, matrix_bytes: int = MATRIX_BYTES) -> VectorDatabase:
        """Open them; to be closed before these stores. `matrix_bytes`: memory for vectors, where a search compares them
        in this process. Raises `StoreError`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then close what was opened."""
