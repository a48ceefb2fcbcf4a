"""Defines the interface of a backend, which stores Antiphon's state in one kind of database.

Lives here: the abstract class of a backend, the class that holds all stores of a backend, and the default options for
opening a backend. Not here: the selection of a backend (`choice.py`), the backends (`sqlite/`, `postgres/`).

Invariant: this module imports no backend. Other packages use an opened backend through this module, through a shared
store (`conversations.py`, …) or through an interface in `engine/ports/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, Required, TypedDict

from antiphon.config.limits import TimeoutSettings
from antiphon.config.state import BlobSettings, RetentionSettings, StateSettings
from antiphon.engine.ports.containers import ContainerRows
from antiphon.engine.ports.files import BlobStore
from antiphon.engine.ports.jobs import Signals
from antiphon.engine.ports.quotas import QuotaRules
from antiphon.engine.ports.state import OwnerData
from antiphon.engine.ports.vector_stores import ChunkIndex, Ingestion
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.audit import AuditStore
from antiphon.stores.blobs import open_blobs
from antiphon.stores.blobs.disk import FILES_FOLDER
from antiphon.stores.blobs.pending import UPLOAD_LEASE_SECONDS, PendingBlobs
from antiphon.stores.bodies import PLAIN, Bodies
from antiphon.stores.client_keys import ClientKeyStore
from antiphon.stores.compatibility import KeyFingerprints, Recorded, Schema
from antiphon.stores.conversations import ConversationStore
from antiphon.stores.files import FileSql, FileStore
from antiphon.stores.idempotency import KEEP_SECONDS, IdempotencyStore
from antiphon.stores.jobs import ChangeListener, JobSql, JobStore, JobWriter, Measured, notify_nobody
from antiphon.stores.journal import JournalStore
from antiphon.stores.live import LiveStore
from antiphon.stores.owner_usage import OwnerNames, OwnerQuota, StorageQuota, UsageStore
from antiphon.stores.prompts import PromptStore
from antiphon.stores.quotas import QuotaStore
from antiphon.stores.responses import ResponseStore, ResponseWriter
from antiphon.stores.retention import Pieces, Retention
from antiphon.stores.tables import Tables
from antiphon.stores.vector_stores import VectorStores

MATRIX_BYTES = 1 << 30

KeyName = Literal["owner.key", "sealing.key"]
KeyFiles = Mapping[KeyName, tuple[bytes, ...]]


@dataclass(frozen=True, slots=True)
class StateFinding:
    """One finding of `antiphon doctor` about the state's database. `advice`: the action that the operator should
    take."""

    verdict: Literal["ok", "note", "problem"]
    what: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class StateNeeds:
    """The values from the settings with which `antiphon doctor` compares the state's database. `connections`: the
    number of database connections that all processes of this machine open together."""

    keys: KeyFingerprints
    connections: int
    vectors: bool


Report = Callable[[int, int | None], None]
"""A callback for the progress of a long operation. The first argument is the number of rows or bytes since the last
call. The second argument is the total, or None if the total is unknown."""


def ignore_progress(done: int, total: int | None) -> None:
    """Ignore the progress."""


@dataclass(frozen=True, slots=True)
class BackupSummary:
    """A summary of a backup archive of the data folder. `contents`: the number of file contents in the archive. `size`:
    the size of the archive in bytes. `keys`: the names of the key files in the archive. `vanished`: the number of files
    that the archive lacks, because clients deleted them during the backup."""

    contents: int
    size: int
    keys: tuple[str, ...]
    vanished: int = 0


class StoreOptions(TypedDict, total=False):
    """The options with which the caller opens a backend. `all_options` adds the defaults."""

    chain_items: Required[int]
    """The maximum number of history items that one request may load."""
    history_bytes: int
    """The maximum bytes of history that one request may load."""
    page_bytes: int
    """The maximum bytes of one page of a list. A page with large rows may have fewer rows than the client's `limit`."""
    owner_file_bytes: int | None
    """The maximum bytes of one owner's files; None: no limit."""
    upload_lease: float
    """Seconds without a write after which an upload counts as abandoned."""
    owner_bytes: int | None
    """The maximum bytes of one owner's data other than files; None: no limit."""
    storage: tuple[QuotaRules, Mapping[str, Sequence[str]]]
    """The quotas in the settings, and the owner ids of each team in the settings. The store uses these quotas and owner
    ids to limit stored data."""
    kept: RetentionSettings
    """The periods after which the sweep deletes responses, conversations and event streams."""
    timeouts: TimeoutSettings
    """The timeouts in seconds for writes to the database."""
    keep_keys: float
    """Seconds for which the store keeps an idempotency key after the request created its object."""
    bodies: Bodies
    """Encrypts and decrypts the bodies of stored items, responses and prompts."""
    measured: Measured
    """Measures the duration and outcome of each operation of a worker on background jobs."""


_DEFAULTS: StoreOptions = {
    "chain_items": 1000,
    "history_bytes": 64 << 20,
    "page_bytes": 16 << 20,
    "owner_file_bytes": None,
    "upload_lease": UPLOAD_LEASE_SECONDS,
    "owner_bytes": None,
    "storage": (QuotaRules(), {}),
    "kept": RetentionSettings(events=None, audit=None),
    "timeouts": TimeoutSettings(),
    "keep_keys": KEEP_SECONDS,
    "bodies": PLAIN,
    "measured": nullcontext,
}


def all_options(given: StoreOptions) -> StoreOptions:
    """Return the given options, with defaults for the missing ones."""
    return {**_DEFAULTS, **given}


@dataclass(frozen=True, slots=True)
class DatabaseStatistics:
    """Statistics that one query reads from a database. All fields except `size` describe a database server, so SQLite
    leaves them empty."""

    size: int
    """The size of the database in bytes."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """The size in bytes of each table with its indexes, by table name."""
    connections: Mapping[str, int] = field(default_factory=dict)
    """The number of client connections to the whole server, by connection state (`active`, `idle`, …)."""
    most_connections: int | None = None
    """The maximum number of connections of the server."""
    oldest_xmin: int | None = None
    """The age of the oldest snapshot in use, as the number of transactions that began after that snapshot."""


class StoreStatistics(Protocol):
    """Current statistics of one database, and of this process's use of it, for metrics."""

    @property
    def name(self) -> str:
        """The database's name in metric labels."""

    @property
    def waiting(self) -> int:
        """The number of writes that wait in this process's queue."""

    @property
    def busy(self) -> int:
        """The number of connections for reads that are in use."""

    @property
    def groups(self) -> Mapping[int, int]:
        """The number of write transactions since the process started, by the number of writes in each transaction."""

    async def look(self) -> DatabaseStatistics:
        """Read the database's statistics with one query. Raises `StoreError`."""


@dataclass(frozen=True)
class VectorDatabase(ABC):
    """The vector stores of one backend. `stores` serves the API, and `index` serves searches. `ingestion` is the queue
    of files to index. `keys` holds the idempotency keys of requests that create vector stores or batches."""

    stores: VectorStores
    ingestion: Ingestion
    index: ChunkIndex
    keys: IdempotencyStore
    statistics: tuple[StoreStatistics, ...]
    """Statistics of the separate database of the vector stores. The tuple is empty when the vector stores share a
    database with the other stores."""

    @abstractmethod
    async def check_vectors(self) -> None:
        """Check that the database can store embedding vectors. Word search needs no check, because every database
        supports it. Raises `StoreError` with advice."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the accepted writes, then close the resources that this object opened."""


class Stores(ABC):
    """All stores of one backend, one attribute for each kind of object (`responses`, `files`, …).

    `open_vectors` opens the vector stores only when a caller needs them.
    """

    statistics: tuple[StoreStatistics, ...]
    """Statistics of every database that these stores use."""
    containers: ContainerRows | None = None
    """The rows of code containers that several machines share. None means that the data folder of this machine holds
    the containers."""

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
        """Build the stores over these tables. `options` must have all keys (`all_options` adds the defaults). The
        keyword arguments are the SQL and the classes that differ by backend."""
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
        self.owner_names = OwnerNames(tables)
        self.client_keys = ClientKeyStore(tables)
        self.audit = AuditStore(tables)
        self.quotas = QuotaStore(tables)
        self.journal = JournalStore(tables, bodies)
        self.live = LiveStore(tables)
        general = None if owner_bytes is None else OwnerQuota(tables, owner_bytes)
        rules, teams = options["storage"]
        limited = general is not None or rules.limits_storage
        self.owner_room = StorageQuota(tables, rules, teams, general=general) if limited else None

    @abstractmethod
    def has_vectors(self) -> bool:
        """Return whether vector stores may exist. False means that the database of the vector stores does not exist,
        and that `open_vectors` would create the database."""

    @abstractmethod
    async def open_vectors(self, *, matrix_bytes: int = MATRIX_BYTES) -> VectorDatabase:
        """Open the vector stores. The caller closes the vector stores before it closes this object. `matrix_bytes`: the
        bytes of memory for vectors if this process compares vectors itself (SQLite). Raises `StoreError`."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish the accepted writes, then close the database and the storage for file contents."""


class Backend(ABC):
    """Opens, checks, migrates and archives the whole state. Each kind of `state.url` has a subclass.

    The kinds are SQLite, memory and PostgreSQL.

    A method raises `StoreError` when the database fails, and `ConfigError` when the settings forbid the operation. A
    read-only method creates no folder, database or table.
    """

    def __init__(self, state: StateSettings, data: Path) -> None:
        """`data`: the data folder."""
        self.state = state
        self.data = data

    @abstractmethod
    async def open(self, contents: BlobStore, options: StoreOptions) -> Stores:
        """Open all stores of this backend. Creates a missing database or table. `contents`: the storage for file
        contents, which the stores close."""

    async def open_contents(self, blobs: BlobSettings) -> BlobStore:
        """Open the storage for the contents of files. The caller closes the returned storage."""
        return await open_blobs(blobs, self.data / FILES_FOLDER)

    def check_not_moved(self) -> None:
        """Raise `ConfigError` when `antiphon admin move` has moved this state to another database, or is still moving
        it."""
        return

    @abstractmethod
    def check_there(self) -> None:
        """Raise `ConfigError` when no stored state exists. An operator's command would then have no data to work on."""

    @abstractmethod
    async def open_owner_data(self, bodies: Bodies) -> OwnerData:
        """Open the object that exports and deletes owners' data. The caller closes the returned object. `bodies`
        decrypts sealed bodies."""

    def has_rows(self, *, hashed: bool) -> bool:
        """Return whether this machine stores data that clients cannot reach or read without the keys in the data
        folder. With `hashed`, this method ignores data of owners whose id is not the hash of a token."""
        # This default applies to a shared database, whose keys come from the settings, and to state in memory, which
        # starts empty.
        return False

    @abstractmethod
    def open_schemas(self, *, seconds: float, within: float = 0.0) -> AbstractAsyncContextManager[Sequence[Schema]]:
        """Open all database schemas of this state. `seconds`: the timeout of one migration. `within`: the seconds to
        wait for a server that does not answer."""

    async def recorded_keys(self) -> Recorded | None:
        """Return the key fingerprints in a database that several machines share. Returns None if only one machine uses
        the database."""
        return None

    async def check_keys(self, keys: KeyFingerprints) -> None:
        """Compare these keys with the recorded keys and record new keys, in one transaction. Raises `ConfigError` when
        a process must not start with these keys. A backend without a shared database accepts any keys."""
        return

    async def accept_keys(self, keys: KeyFingerprints) -> None:
        """Replace the recorded keys of a shared database with these keys."""
        return

    @abstractmethod
    def examine(self, wanted: StateNeeds, shared: AsyncIterator[StateFinding]) -> AsyncIterator[StateFinding]:
        """Yield findings about the state for `antiphon doctor`. `shared`: findings about the schema and the keys. This
        method yields the shared findings too."""

    def check_archives(self) -> None:
        """Raise `ConfigError` for a backend other than SQLite, which has no archives."""
        raise _no_archives(self.state)

    def make_archive(
        self,
        target: Path,
        keys: KeyFiles,
        *,
        with_keys: bool,
        with_contents: bool,
        report: Report = ignore_progress,
    ) -> BackupSummary:
        """Write an archive of the data folder to `target`. Raises `ConfigError` for a backend other than SQLite.

        `keys`: all keys in use. `with_keys`: whether the archive includes the keys. `with_contents`: whether the data
        folder holds the contents of files.
        """
        raise _no_archives(self.state)

    def open_archive(self, source: Path, keys: KeyFiles, *, report: Report = ignore_progress) -> BackupSummary:
        """Restore the data folder from an archive. Raises `ConfigError` for a backend other than SQLite.

        `keys`: the keys in the settings, which must include every key that the archive lacks.
        """
        raise _no_archives(self.state)


def check_target(archive: Path) -> None:
    """Raise `StoreError` when the file of a new archive exists already."""
    if archive.exists():
        raise StoreError(f"The file {archive} exists already. Choose another name for the backup.")


def _no_archives(state: StateSettings) -> ConfigError:
    return ConfigError(
        f"state.url: Antiphon can archive only SQLite, not {state.place.shown}; back up PostgreSQL with pg_dump, and "
        "also the contents of files and the keys"
    )
