"""What a backend is: a database in which state lies, what it is opened with, and what it gives.

Lives here: what all backends offer, and the values they share. Not here: the choice of one (`choice.py`), any of them.

Invariant: nothing here imports a backend; what others use of an opened one is a port (`engine/ports/`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Required, TypedDict

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BlobSettings, RetentionSettings, StateSettings
from antiphon.engine.ports.containers import ContainerRows
from antiphon.engine.ports.figures import StoreFigures
from antiphon.engine.ports.files import BlobStore, FileStore
from antiphon.engine.ports.idempotency import IdempotencyStore
from antiphon.engine.ports.indexing import ChunkIndex, Ingestion
from antiphon.engine.ports.jobs import JobStore
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.engine.ports.retention import Retention
from antiphon.engine.ports.signals import Signals
from antiphon.engine.ports.state import ConversationStore, OwnerRoom, PromptStore, ResponseStore
from antiphon.engine.ports.usage import UsageStore
from antiphon.engine.ports.vector_stores import VectorStores
from antiphon.errors import ConfigError
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.opening import open_blobs
from antiphon.stores.deployment import Keys, Recorded
from antiphon.stores.schema_steps import Schema

if TYPE_CHECKING:
    from antiphon.stores.bodies import Bodies

MATRIX_BYTES = 1 << 30
KEEP_SECONDS = 86_400.0

KeyName = Literal["owner.key", "sealing.key"]
KeyFiles = Mapping[KeyName, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that was found; `advice` says what to do."""

    verdict: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings ask of the state. `connections`: of all processes of this machine together."""

    keys: Keys
    connections: int
    vectors: bool


@dataclass(frozen=True, slots=True)
class Archived:
    """What an archive holds: how many contents of files, how many bytes in all, which keys. `vanished`: files that
    were deleted while it was made, and are not in it."""

    contents: int
    size: int
    keys: tuple[str, ...]
    vanished: int = 0


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
    bodies: Bodies
    """Seals what is stored, and opens it."""


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
    containers: ContainerRows | None
    """The rows of containers in which code runs, where several machines share them; otherwise they lie in the data
    folder."""

    @property
    @abstractmethod
    def figures(self) -> tuple[StoreFigures, ...]:
        """Of every database that these stores are in."""

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


class Backend(ABC):
    """All that is done with a state as a whole, for one kind of `state.url`.

    What fails raises `StoreError`; what the settings do not allow, `ConfigError`. Nothing is made by being looked at.
    """

    def __init__(self, state: StateSettings, data: Path) -> None:
        """`data`: the data folder."""
        self.state = state
        self.data = data

    @abstractmethod
    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """Open the stores, with everything of theirs that is not there yet. `contents`: of files, theirs from then
        on."""

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """Where the contents of files lie, to be closed."""
        return await open_blobs(blobs, self.data / FILES_FOLDER)

    def check_not_moved(self) -> None:
        """Raises where everything was moved to another state, or is being moved."""
        return

    @abstractmethod
    def check_there(self) -> None:
        """Raises `ConfigError` when there is nothing that an operator could work on."""

    @abstractmethod
    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """The data of all owners, to be closed; `bodies` opens what is sealed."""

    def has_rows(self, *, hashed: bool) -> bool:
        """Whether anything is kept on this machine that depends on the keys of the data folder; with `hashed`, anything
        of an owner who is known by the hash of a token."""
        # With a shared database keys are settings, and what is in memory begins with the process.
        return False

    @abstractmethod
    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """All schemas of this state. `seconds`: how long one step may take; `within`: how long a server that does not
        answer is waited for."""

    async def recorded_keys(self) -> Recorded | None:
        """The keys that the database goes with which machines share; None where they share none."""
        return None

    async def check_keys(self, keys: Keys) -> None:
        """Note what is new of these keys, judged and written as one. Raises `ConfigError` where a process must not
        start with them. Where machines share no database, any will do."""
        return

    async def accept_keys(self, keys: Keys) -> None:
        """The database that machines share, if they do, goes with these keys from now on, and no others."""
        return

    @abstractmethod
    def examine(self, wanted: Wanted, shared: AsyncIterator[Said]) -> AsyncIterator[Said]:
        """What can be said of the place to an operator; `shared`: what is said of the schema and the keys."""

    def make_archive(self, target: Path, keys: KeyFiles, *, with_keys: bool, with_contents: bool) -> Archived:
        """Write an archive of the data folder. `keys`: all that are in force. `with_contents`: whether the contents of
        files lie there."""
        raise _no_archives(self.state)

    def open_archive(self, source: Path, keys: KeyFiles) -> Archived:
        """Make the data folder from an archive. `keys`: those the settings give."""
        raise _no_archives(self.state)


def _no_archives(state: StateSettings) -> ConfigError:
    return ConfigError(
        f"state.url: archives are of SQLite, not of {state.place.shown}; PostgreSQL is backed up with its own tools "
        "(pg_dump), together with the contents of files and the keys"
    )
