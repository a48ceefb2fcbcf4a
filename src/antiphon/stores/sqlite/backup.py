"""Backs up a data folder into one archive while servers use it, and restores a folder from an archive.

Lives here: the layout of the archive, the order in which a backup copies data, and the checks before a restore. Not
here: settings, and the meaning of the key files (`commands/admin/whole_state.py`).

The archive is an uncompressed tar file. The archive contains a snapshot of each database (by SQLite's online backup),
each file content as `files/<key>`, and the key files of the data folder. The last member is `manifest.json`. The
manifest lists the size and SHA-256 of every other file in the archive, and the fingerprints of all keys.

A server writes a file's content before its row, and deletes the row before the content. So the backup hard-links all
contents, copies the databases, and then links the contents that the first step did not link. As a result, every row in
the copy has its content, unless a client uploaded and deleted the file during the backup.

Invariants: only the operating-system user who runs the backup can read the archive. The archive appears under its final
name only when it is complete. A restore needs an empty folder. A restore rejects an archive that differs from its
manifest, or whose keys are missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Literal, get_args

import msgspec
from msgspec import Struct

from antiphon.errors import StoreError
from antiphon.stores.backend import BackupSummary, KeyFiles, KeyName, Report, check_target, ignore_progress
from antiphon.stores.blobs.disk import FILES_FOLDER, KEY, content_place, flush_folder
from antiphon.stores.sqlite.backend import SESSIONS_FILE, VECTOR_STEPS, VECTORS_FILE
from antiphon.stores.sqlite.database import open_connection, store_errors
from antiphon.stores.sqlite.migrate import check_schema, packaged_steps
from antiphon.stores.sqlite.vectors.sql import INDEX_PREFIX, INDEX_TABLE, index_table

_MANIFEST = "manifest.json"
_WORK = ".backup"
_PAGES = 2_000
_MAX_MANIFEST = 256 << 20
_ELSEWHERE = (
    "Nothing was restored. Copy the file again from its origin and compare the sizes. If the original file has the "
    "same fault, restore an older backup."
)
Link = Callable[[Path, Path], None]
_WITHOUT_CONTENT = "SELECT owner, id, blob FROM files"


class _ArchiveMember(Struct):
    size: int
    sha256: str


class _Manifest(Struct):
    format: Literal[1]
    created_at: int
    keys: dict[KeyName, list[str]]
    members: dict[str, _ArchiveMember]
    with_contents: bool = True


def fingerprint(key: bytes) -> str:
    """Return a one-way hash that identifies a key in the manifest without revealing the key."""
    return hashlib.blake2b(key, digest_size=12, person=b"antiphon backup").hexdigest()


def make_archive(
    data: Path,
    target: Path,
    keys: KeyFiles,
    *,
    with_keys: bool,
    with_contents: bool = True,
    databases: Path | None = None,
    report: Report = ignore_progress,
    link: Link = os.link,
) -> BackupSummary:
    """Write the archive to `target`. `keys`: all keys in use, by their file name in the data folder. `databases`: the
    folder of the database files, or None if it is `data`.

    The archive includes the key files that exist in `data`, unless `with_keys` is False. The manifest always has the
    fingerprints of all keys. `with_contents`: whether `data` contains the file contents. If False (the contents are in
    S3), the archive includes only the file rows. `report` receives the number of archived bytes. `link` creates a hard
    link.

    Raises `StoreError`, for example when `target` exists or another backup is running.
    """
    check_target(target)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with _folder_in(data) as work, _private(draft) as out, tarfile.open(fileobj=out, mode="w|") as archive:
            packed = _Packed(archive, report)
            if with_contents:
                _link_contents(data, work, link)
            vanished = _copy_databases(data, databases or data, work, link if with_contents else None)
            contents = sorted((work / FILES_FOLDER).iterdir())
            copies = [work / name for name in (SESSIONS_FILE, VECTORS_FILE) if (work / name).exists()]
            packed.total = sum(path.stat().st_size for path in (*copies, *contents))
            for path in copies:
                packed.add(path.name, path)
            included = [name for name in keys if with_keys and (data / name).exists()]
            for name in included:
                packed.add(name, data / name)
            for path in contents:
                packed.add(f"{FILES_FOLDER}/{path.name}", path)
            prints = {name: [fingerprint(key) for key in values] for name, values in keys.items()}
            packed.finish(prints, with_contents)
        os.replace(draft, target)
        flush_folder(target.parent)
    except OSError as error:
        raise StoreError(f"The backup failed: {error.strerror or error} ({error.filename or target}).") from error
    finally:
        draft.unlink(missing_ok=True)
    return BackupSummary(len(contents), target.stat().st_size, tuple(included), vanished)


def open_archive(source: Path, data: Path, keys: KeyFiles, *, report: Report = ignore_progress) -> BackupSummary:
    """Restore the data folder from an archive. `keys`: the keys from the settings, by their file name in the data
    folder. `report` receives the number of restored bytes.

    Raises `StoreError`. A failed restore removes every file that it wrote.
    """
    if data.exists() and any(data.iterdir()):
        raise StoreError(
            f"The folder {data} is not empty. Restore into a new folder, then move the new folder to its place."
        )
    draft = data.with_name(f".{data.name}.{os.getpid()}.restoring")
    try:
        draft.mkdir(mode=0o700, parents=True)
        manifest = _unpack(source, draft, report)
        _check_keys(manifest.keys, draft, keys)
        for name in (SESSIONS_FILE, VECTORS_FILE):
            if (draft / name).exists():
                _check_database(draft / name, vectors=name == VECTORS_FILE)
        if manifest.with_contents:
            _check_contents(draft)
        if data.exists():
            data.rmdir()
        os.rename(draft, data)
        flush_folder(data.parent)
    except tarfile.TarError as error:
        raise StoreError(
            f"{source} cannot be read to its end: the file is truncated or not a backup. {_ELSEWHERE}"
        ) from error
    except OSError as error:
        raise StoreError(f"Restoring failed: {error}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    names = manifest.members
    contents = sum(1 for name in names if name.startswith(f"{FILES_FOLDER}/"))
    return BackupSummary(contents, source.stat().st_size, tuple(name for name in keys if name in names))


# Making


class _Packed:
    """Writes members to the archive and records the size and SHA-256 of each for the manifest."""

    def __init__(self, archive: tarfile.TarFile, report: Report) -> None:
        self._archive = archive
        self._report = report
        self.total: int | None = None
        self._members: dict[str, _ArchiveMember] = {}

    def add(self, name: str, path: Path) -> None:
        with path.open("rb") as content:
            size = os.fstat(content.fileno()).st_size
            hashed = _Hashed(content, lambda done: self._report(done, self.total))
            self._archive.addfile(_member(name, size), hashed)
        self._members[name] = _ArchiveMember(size, hashed.sha256.hexdigest())

    def finish(self, keys: Mapping[KeyName, list[str]], with_contents: bool) -> None:
        body = msgspec.json.encode(_Manifest(1, int(time.time()), dict(keys), self._members, with_contents))
        self._archive.addfile(_member(_MANIFEST, len(body)), io.BytesIO(body))


class _Hashed(io.RawIOBase):
    def __init__(self, content: IO[bytes], read: Callable[[int], None]) -> None:
        self._content = content
        self._read = read
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        part = self._content.read(size)
        self.sha256.update(part)
        self._read(len(part))
        return part


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info


@contextmanager
def _folder_in(data: Path) -> Iterator[Path]:
    """Create and lock a private working folder inside the data folder. The folder must be on the same file system as
    the file contents, because hard links cannot cross file systems."""
    work = data / _WORK
    work.mkdir(mode=0o700, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise StoreError(f"Another backup of {data} is under way.") from None
    try:
        for left in work.iterdir():
            # A backup that was killed left these files.
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        (work / FILES_FOLDER).mkdir(mode=0o700)
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        os.close(lock)


@contextmanager
def _private(path: Path) -> Iterator[IO[bytes]]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        yield out
        out.flush()
        os.fsync(out.fileno())


def _link_contents(data: Path, work: Path, link: Link) -> None:
    for path in (data / FILES_FOLDER).glob("??/??/*"):
        if KEY.fullmatch(path.name):
            link_or_copy(path, work / FILES_FOLDER / path.name, link)


def link_or_copy(path: Path, to: Path, link: Link = os.link) -> bool:
    """Create a hard link `to` for the file, or a copy where the file system has no links. Returns False when the file
    no longer exists. Raises `OSError`."""
    try:
        link(path, to)
    except FileExistsError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        # The file system has no hard links, so copy the file. A server may delete the file during the copy.
        try:
            shutil.copyfile(path, to)
        except FileNotFoundError:
            to.unlink(missing_ok=True)
            return False
    return True


def _copy_databases(data: Path, databases: Path, work: Path, link: Link | None) -> int:
    """Copy `sessions.db` and `vectors.db` into `work`. With `link`, hard-link the content of every file row, and remove
    the links to all other contents. Returns the number of file rows whose content no longer exists."""
    # Copy `vectors.db` first, because its rows refer to files in `sessions.db`. If a client deletes a file between the
    # two copies, a vector store in the copy refers to a missing file. All other referenced files are in the copy.
    if (databases / VECTORS_FILE).exists():
        _copy_database(databases / VECTORS_FILE, work / VECTORS_FILE)
    _copy_database(databases / SESSIONS_FILE, work / SESSIONS_FILE)
    path = work / SESSIONS_FILE
    vanished = 0
    with store_errors("Reading the copy", path), closing(sqlite3.connect(path, isolation_level=None)) as copy:
        wanted = set()
        for owner, file_id, blob in copy.execute(_WITHOUT_CONTENT).fetchall():
            wanted.add(blob)
            content = content_place(data / FILES_FOLDER, blob)
            if link is not None and not link_or_copy(content, work / FILES_FOLDER / blob, link):
                copy.execute("DELETE FROM files WHERE owner = ? AND id = ?", (owner, file_id))
                vanished += 1
        # Leave WAL mode, so that the copy is one file without a write-ahead log.
        copy.execute("PRAGMA journal_mode=DELETE")
    for linked in (work / FILES_FOLDER).iterdir():
        if linked.name not in wanted:
            linked.unlink()
    return vanished


def _copy_database(path: Path, to: Path) -> None:
    to.touch(mode=0o600)
    with open_connection(path, "Copying") as source, closing(sqlite3.connect(to)) as copy:
        # Copy the database in one read transaction. Otherwise each write of another process would restart the online
        # backup.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        source.backup(copy, pages=_PAGES)
        copy.execute("PRAGMA journal_mode=DELETE")


# Restoring


def _unpack(source: Path, draft: Path, report: Report) -> _Manifest:
    """Extract the archive's members into `draft`, and compare their sizes and hashes with the manifest."""
    found: dict[str, _ArchiveMember] = {}
    manifest: _Manifest | None = None
    total = source.stat().st_size
    with tarfile.open(source, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise StoreError(
                    f"{source} is not a backup: it contains {member.name!r}. Name a file that `antiphon admin "
                    "backup` wrote."
                )
            if member.name == _MANIFEST:
                manifest = _read_manifest(content, source)
                continue
            path = _place(draft, member.name)
            if path is None or member.name in found:
                raise StoreError(
                    f"{source} is not a backup: it contains {member.name!r}. Name a file that `antiphon admin "
                    "backup` wrote."
                )
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _private(path) as out:
                hashed = _Hashed(content, lambda done: report(done, total))
                shutil.copyfileobj(hashed, out, 1 << 20)
            found[member.name] = _ArchiveMember(member.size, hashed.sha256.hexdigest())
    if manifest is None:
        raise StoreError(f"{source} has no end: the file is truncated or not a backup. {_ELSEWHERE}")
    if found != manifest.members:
        wrong = sorted(name for name in {*found, *manifest.members} if found.get(name) != manifest.members.get(name))
        raise StoreError(f"{source} is damaged: {wrong[0]} differs from the manifest. {_ELSEWHERE}")
    if SESSIONS_FILE not in found:
        raise StoreError(f"{source} contains no database. Name a file that `antiphon admin backup` wrote.")
    return manifest


def _read_manifest(content: IO[bytes], source: Path) -> _Manifest:
    try:
        return msgspec.json.decode(content.read(_MAX_MANIFEST), type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise StoreError(
            f"{source} is not a backup, or another version of Antiphon wrote it. Restore it with the version that "
            "wrote it."
        ) from None


def _place(draft: Path, name: str) -> Path | None:
    if name in (SESSIONS_FILE, VECTORS_FILE) or name in get_args(KeyName):
        return draft / name
    folder, _, key = name.partition("/")
    if folder == FILES_FOLDER and KEY.fullmatch(key):
        return content_place(draft / FILES_FOLDER, key)
    return None


def _check_keys(needed: Mapping[KeyName, list[str]], draft: Path, given: KeyFiles) -> None:
    for name, fingerprints in needed.items():
        path = draft / name
        there = [*given.get(name, ()), *([path.read_bytes().strip()] if path.exists() else [])]
        if missing := set(fingerprints) - {fingerprint(key) for key in there}:
            raise StoreError(
                f"The backup lacks the key {name}, and the settings do not contain it (fingerprint "
                f"{sorted(missing)[0]}). Without this key the stored objects are unreadable. Use the settings of the "
                "original server (--config), or restore a backup that contains its keys."
            )


def _check_database(path: Path, *, vectors: bool) -> None:
    """Check the schema and then the integrity of a database. The schema comes first, because SQLite's integrity check
    would run code of a foreign schema."""
    with store_errors("Checking", path), closing(sqlite3.connect(path)) as connection:
        try:
            if vectors:
                check_schema(connection, packaged_steps(VECTOR_STEPS), _made_of_stores, INDEX_PREFIX)
            else:
                check_schema(connection, packaged_steps())
        except StoreError as error:
            raise StoreError(f"The database {path.name} of the backup cannot be used: {error}") from None
        (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise StoreError(f"The database {path.name} of the backup is damaged: {said}.")


def _made_of_stores(connection: sqlite3.Connection) -> list[str]:
    """Return the CREATE statements of the full-text indexes, one per vector store. No migration contains the CREATE
    statements of these indexes."""
    ids = [str(store_id) for (store_id,) in connection.execute("SELECT id FROM vector_stores")]
    return [INDEX_TABLE.format(table=index_table(store_id)) for store_id in ids]


def _check_contents(draft: Path) -> None:
    path = draft / SESSIONS_FILE
    with open_connection(path, "Checking") as connection:
        wanted = {blob for (blob,) in connection.execute("SELECT blob FROM files")}
    held = {path.name for path in (draft / FILES_FOLDER).glob("??/??/*")}
    if missing := wanted - held:
        raise StoreError(f"The backup is incomplete: the contents of {len(missing)} files are not in it.")
