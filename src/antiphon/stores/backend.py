"""Defines the interface of a backend: the database that holds the state.

Lives here: what every backend offers, the stores that all backends share, and the default options. Not here: the
selection of a backend (`choice.py`), the backends.

Invariant: nothing here imports a backend. Other packages use an opened backend through this module, a shared store
(`conversations.py`, …) or a port (`engine/ports/`).
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
    """One finding of a check of the state. `advice`: what the operator should do."""

    verdict: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class StateNeeds:
    """What the settings require of the state. `connections`: the sum over all processes of this machine."""

    keys: Keys
    connections: int
    vectors: bool


@dataclass(frozen=True, slots=True)
class Archived:
    """The contents of an archive: the number of file contents, the total bytes, the names of the keys. `vanished`:
    files that were deleted during the backup and are missing from the archive."""

    contents: int
    size: int
    keys: tuple[str, ...]
    vanished: int = 0


class StoreOptions(TypedDict, total=False):
    """The options that every backend is opened with."""

    chain_items: Required[int]
    """The maximum number of history items that one request may load."""
    history_bytes: int
    """The maximum bytes of history that one request may load."""
    page_bytes: int
    """The maximum bytes of one page of a list, whatever its number of rows."""
    owner_file_bytes: int | None
    """The maximum bytes of one owner's files; None: no limit."""
    upload_lease: float
    """Seconds without a write after which an upload counts as abandoned."""
    owner_bytes: int | None
    """The maximum bytes of one owner's other data; None: no limit."""
    kept: RetentionSettings
    """The retention periods."""
    timeouts: TimeoutSettings
    """How long a caller waits for the database."""
    keep_keys: float
    """Seconds for which an idempotency key is stored."""
    bodies: Bodies
    """Encrypts stored bodies, and decrypts them."""
    measured: Measured
    """Measures the operations of workers on jobs."""


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
    """The given options, completed with the defaults."""
    return {**_DEFAULTS, **given}


@dataclass(frozen=True, slots=True)
class DatabaseFigures:
    """Figures that one query reads from a database. All but `size` describe a database server; SQLite leaves them
    empty."""

    size: int
    """The size of the database in bytes."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """The size of each table with its indexes, in bytes."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """The number of client connections to the whole server, by state."""
    most_connections: int | None = None
    """The maximum number of connections of the server."""
    oldest_xmin: int | None = None
    """The age of the oldest snapshot in use, as a number of transactions that began after it."""


class StoreFigures(Protocol):
    """Live figures of one database in this process."""

    @property
    def name(self) -> str:
        """The database's name in metric labels."""

    @property
    def waiting(self) -> int:
        """The number of queued writes."""

    @property
    def busy(self) -> int:
        """The number of read connections in use."""

    @property
    def groups(self) -> Mapping[int, int]:
        """The number of transactions since the start, by the number of writes in each."""

    async def look(self) -> DatabaseFigures:
        """Read the figures with one query. Raises `StoreError`."""


@dataclass(frozen=True)
class VectorDatabase(ABC):
    """The vector stores: the API's view, the ingestion queue, the search index, and the idempotency keys of
    creations."""

    stores: VectorStores
    ingestion: Ingestion
    index: ChunkIndex
    keys: IdempotencyStore
    figures: tuple[StoreFigures, ...]
    """Figures of its separate database; empty where it shares a database with the other stores."""

    @abstractmethod
    async def check_vectors(self) -> None:
        """Check that the database can store vectors; it can always store words. Raises `StoreError` with advice."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the accepted writes, then close the resources that this object opened."""


class Stores(ABC):
    """All stores except vector stores, which `open_vectors` opens on demand."""

    figures: tuple[StoreFigures, ...]
    """Figures of every database that these stores use."""
    containers: ContainerRows | None = None
    """The rows of code containers, where several machines share them. None: the data folder holds them."""

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
        """Build the stores over these tables. `options` must be complete (`all_options`). The keyword arguments are the
        parts that each backend implements itself."""
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
        """Whether vector stores may exist. If False, `open_vectors` would create their database."""

    @abstractmethod
    async def open_vectors(self, *, matrix_bytes: int = MATRIX_BYTES) -> VectorDatabase:
        """Open the vector stores; the caller closes them before these stores. `matrix_bytes`: memory for vectors where
        this process compares them. Raises `StoreError`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the accepted writes, then close what was opened."""


class Backend(ABC):
    """The operations on a state as a whole, for one kind of `state.url`.

    Failures raise `StoreError`; settings that forbid the operation raise `ConfigError`. Methods that only read create
    nothing.
    """

    def __init__(self, state: StateSettings, data: Path) -> None:
        """`data`: the data folder."""
        self.state = state
        self.data = data

    @abstractmethod
    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """Open the stores and create what they lack. `contents`: the storage for file contents; the stores close it."""

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """Open the storage for the contents of files; the caller closes it."""
        return await open_blobs(blobs, self.data / FILES_FOLDER)

    def check_not_moved(self) -> None:
        """Raise an error where the state was moved to another place, or a move is in progress."""
        return

    @abstractmethod
    def check_there(self) -> None:
        """Raise `ConfigError` when there is no state for an operator's command to work on."""

    @abstractmethod
    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """Open the data of all owners; the caller closes it. `bodies` decrypts sealed bodies."""

    def has_rows(self, *, hashed: bool) -> bool:
        """Whether this machine stores data that depends on the keys of the data folder. With `hashed`, only data of
        owners whose id is the hash of a token counts."""
        # With a shared database the keys are settings. State in memory starts empty with the process.
        return False

    @abstractmethod
    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """Open all schemas of this state. `seconds`: the timeout of one step. `within`: how long to wait for a server
        that does not answer."""

    async def recorded_keys(self) -> Recorded | None:
        """The key fingerprints in a database that machines share; None where machines share none."""
        return None

    async def check_keys(self, keys: Keys) -> None:
        """Compare these keys with the recorded ones and record new ones, in one transaction. Raises `ConfigError` when
        a process must not start with them. A backend without a shared database accepts any keys."""
        return

    async def accept_keys(self, keys: Keys) -> None:
        """Replace the recorded keys of a shared database by these."""
        return

    @abstractmethod
    def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """Yield findings about the state for an operator. `shared`: the findings about the schema and the keys."""

    def make_archive(self, target: Path, keys: KeyFiles, *, with_keys: bool, with_contents: bool) -> Archived:
        """Write an archive of the data folder. `keys`: all keys in force. `with_contents`: whether the data folder
        holds the contents of files."""
        raise _no_archives(self.state)

    def open_archive(self, source: Path, keys: KeyFiles) -> Archived:
        """Restore the data folder from an archive. `keys`: the keys in the settings."""
        raise _no_archives(self.state)


def _no_archives(state: StateSettings) -> ConfigError:
    return ConfigError(
        f"state.url: archives are of SQLite, not of {state.place.shown}; PostgreSQL is backed up with its own tools "
        "(pg_dump), together with the contents of files and the keys"
    )
