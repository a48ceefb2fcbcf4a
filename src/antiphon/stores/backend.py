"""The interface of a backend: the database that holds the state.

Lives here: what all backends offer, the stores that they share, put together, and what their options are unless they
are given. Not here: the choice of one (`choice.py`), any of them.

Invariant: nothing here imports a backend; what others use of an opened one stands here, in a store that all share
(`conversations.py`, …), or in a port (`engine/ports/`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Required, TypedDict

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BlobSettings, RetentionSettings, StateSettings
from antiphon.engine.ports.containers import ContainerRows
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.indexing import ChunkIndex, Ingestion
from antiphon.engine.ports.owner_data import OwnerData
from antiphon.engine.ports.signals import Signals
from antiphon.errors import ConfigError
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.deployment import Keys, Recorded
from antiphon.stores.files import FileSql, FileStore
from antiphon.stores.idempotency import KEEP_SECONDS, IdempotencyStore
from antiphon.stores.jobs import ChangeListener, JobSql, JobStore, JobWriter, Measured, notify_nobody
from antiphon.stores.owner_usage import OwnerQuota, UsageStore
from antiphon.stores.prompts import PromptStore
from antiphon.stores.responses import ResponseStore, ResponseWriter
from antiphon.stores.retention import Pieces, Retention
from antiphon.stores.schema_steps import Schema
from antiphon.stores.tables import Tables
from antiphon.stores.vector_stores import VectorStores

MATRIX_BYTES = 1 << 30

KeyName = Literal["owner.key", "sealing.key"]
KeyFiles = Mapping[KeyName, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class StateFinding:
    """One thing that was found; `advice` says what to do."""

    verdict: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class StateNeeds:
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
    measured: Measured
    """Around what workers do with jobs."""


_DEFAULTS: StoreOptions = {
    "chain_items": 1000,
    "history_bytes": 64 << 20,
    "page_bytes": 16 << 20,
    "owner_file_bytes": None,
    "upload_lease": UPLOAD_LEASE_SECONDS,
    "owner_bytes": None,
    "kept": RetentionSettings(events=None),
    "timeouts": TimeoutSettings(),
    "keep_keys": KEEP_SECONDS,
    "bodies": PLAIN,
    "measured": nullcontext,
}


def all_options(given: StoreOptions) -> StoreOptions:
    """What was given, and all else as it is unless it is."""
    return {**_DEFAULTS, **given}


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """What a database said when it was asked. All but `size` is of a server, and empty where there is none."""

    size: int
    """What the database takes, in bytes."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """What each table takes with its indexes, in bytes."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """Clients' connections to the whole server, by state."""
    most_connections: int | None = None
    """How many the server takes."""
    oldest_xmin: int | None = None
    """Transactions that have begun since the oldest that somebody still sees the database by."""


class StoreFigures(Protocol):
    """Figures of one database, as this process sees it."""

    @property
    def name(self) -> str:
        """The database's name in labels."""

    @property
    def waiting(self) -> int:
        """Writes that wait to be written."""

    @property
    def busy(self) -> int:
        """Connections for reading that are in use."""

    @property
    def groups(self) -> Mapping[int, int]:
        """How many transactions there were since the start, by how many writes each of them took along."""

    async def look(self) -> DatabaseFigures:
        """Ask it, with one question. Raises `StoreError`."""


@dataclass(frozen=True)
class VectorDatabase(ABC):
    """Vector stores: what clients see, the work, what a search reads, and the keys of requests that made something."""

    stores: VectorStores
    ingestion: Ingestion
    index: ChunkIndex
    keys: IdempotencyStore
    figures: tuple[StoreFigures, ...]
    """Of its own database; none where it shares one with the other stores."""

    @abstractmethod
    async def check_vectors(self) -> None:
        """Make sure that vectors can be kept; words always can. Raises `StoreError` with what to do about it."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was accepted, then close what is its own."""


class Stores(ABC):
    """Everything that is kept, but for vector stores, which are opened when they are wanted."""

    figures: tuple[StoreFigures, ...]
    """Of every database that these stores are in."""
    containers: ContainerRows | None = None
    """The rows of containers in which code runs, where several machines share them; otherwise they lie in the data
    folder."""

    def __init__(
        self,
        tables: Tables,
        keys: IdempotencyStore,
        options: StoreOptions,
        *,
        responses: tuple[ResponseWriter, str],
        jobs: tuple[JobWriter, JobSql],
        files: tuple[FileSql, PendingBlobs, BlobStore],
        pieces: Pieces,
        signals: Signals,
        ended: ChangeListener = notify_nobody,
    ) -> None:
        """The stores over these tables. `options` are all there are; the others are what the backend does in its own
        way."""
        self.keys = keys
        self.signals = signals
        bodies, page_bytes, owner_bytes = options["bodies"], options["page_bytes"], options["owner_bytes"]
        items, history_bytes = options["chain_items"], options["history_bytes"]
        self.responses = ResponseStore(
            tables, *responses, chain_items=items, history_bytes=history_bytes, page_bytes=page_bytes, bodies=bodies
        )
        self.conversations = ConversationStore(
            tables, keys, max_items=items, history_bytes=history_bytes, page_bytes=page_bytes, bodies=bodies
        )
        self.background = JobStore(tables, *jobs, bodies, ended, options["measured"])
        self.prompts = PromptStore(tables, keys, page_bytes=page_bytes, bodies=bodies)
        self.files = FileStore(tables, keys, *files, owner_bytes=options["owner_file_bytes"])
        self.retention = Retention(tables, pieces, options["kept"])
        self.usage = UsageStore(tables)
        self.owner_room = None if owner_bytes is None else OwnerQuota(tables, owner_bytes)

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
    def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
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
