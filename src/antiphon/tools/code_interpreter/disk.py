"""Reads, writes and measures the files of one container from outside the sandbox. The model's code created the files
and may change them concurrently.

This module measures, lists, reads, writes, copies and deletes files. `local.py` and `machine_files.py` call these
operations.

All access uses descriptors of folders and never follows links. The sandbox prevents code from creating links and pipes,
but this module does not rely on that. All functions block, so call them in a thread. A `Folder` is a path or a
descriptor. A folder in a file system in memory has only a descriptor, because it has no path outside the sandbox.

File names may contain bytes that are not UTF-8. Python's `os` functions return bytes that are not UTF-8 as lone
surrogates. `SandboxFile.path` escapes such bytes, so other modules never receive surrogates.

Invariants: no path leads outside its folder, even with `..` or links. Every file can be listed and read, whatever its
name.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from antiphon.engine.ports.containers import ContainerFailed

Folder = Path | int
_MAX_DEPTH = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_UTF8 = re.compile("[\udc80-\udcff]")
_WRITTEN_OUT = re.compile("\0([89a-f][0-9a-f])")


class SandboxFailed(ContainerFailed):
    """Raised when the sandbox fails or rejects an operation. The message is for the model and for clients."""


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """A file of a container. `path`: the path in the working folder. `size`: bytes. `version`: a string that changes
    whenever the file is written.

    Code may choose any bytes as a name. `path` contains each byte that is not UTF-8 as a NUL and two hexadecimal
    digits. File names never contain a NUL, so different names have different paths.
    """

    path: str
    size: int
    version: str


@dataclass(slots=True)
class DiskUse:
    """The disk usage of a folder. `bytes`: bytes on the disk. `count`: the number of files and folders. `deep`: whether
    folders are nested so deeply that some entries were not counted."""

    bytes: int = 0
    count: int = 0
    deep: bool = False


def open_folder(folder: Folder, name: str = ".") -> int:
    """Open the folder, or its subfolder `name`, and return a descriptor. Raises `OSError`."""
    return os.open(folder / name, _FOLDER) if isinstance(folder, Path) else os.open(name, _FOLDER, dir_fd=folder)


def use_of(folder: Folder, limit: int, least: int = 0) -> DiskUse:
    """Measure a folder's disk usage. Each file counts with at least `least` bytes. Stops after `limit` entries."""
    use = DiskUse()
    for depth, _, state in _walk(folder):
        use.count += 1
        if depth >= _MAX_DEPTH:
            use.deep = True
        if use.deep or use.count > limit:
            break
        if state is not None:
            use.bytes += max(state.st_blocks * 512, least if stat.S_ISREG(state.st_mode) else 0)
    return use


def list_files(folder: Folder, limit: int) -> list[SandboxFile]:
    """List regular files, at most `limit`, sorted by path."""
    found = []
    for _, path, state in _walk(folder):
        if state is not None and stat.S_ISREG(state.st_mode):
            found.append(SandboxFile(_written_out(path), state.st_size, _version(state)))
            if len(found) >= limit:
                break
    return sorted(found, key=lambda file: file.path)


def read_file(folder: Folder, path: str, start: int, limit: int) -> bytes:
    """Return at most `limit` bytes of a regular file from offset `start`. Raises `SandboxFailed` if the file does not
    exist."""
    *names, last = _names(path)
    try:
        with _inside(folder, names) as parent:
            opened = _open_file(last, parent)
            try:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise SandboxFailed(f"{path!r} is not a file.")
                return os.pread(opened, limit, start)
            finally:
                os.close(opened)
    except OSError:
        raise SandboxFailed(f"The file {path!r} does not exist any more.") from None


def write_file(folder: Folder, path: str, source: Path, owner: int) -> SandboxFile:
    """Move the complete file `source` to `path`. Replaces an existing file and creates missing folders. `owner`: the
    user id of the file, 0 for the current user. Raises `SandboxFailed`."""
    *names, last = _names(path)
    try:
        with _inside(folder, names, owner) as parent:
            os.chmod(source, 0o644)
            if owner:
                os.chown(source, owner, owner)
            os.rename(source, last, dst_dir_fd=parent)
            state = os.stat(last, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        raise SandboxFailed(f"The file {path!r} cannot be written: {error.strerror}.") from None
    return SandboxFile(path, state.st_size, _version(state))


def remove_file(folder: Folder, path: str) -> None:
    """Delete a file if it exists."""
    *names, last = _names(path)
    with suppress(OSError), _inside(folder, names) as parent:
        os.unlink(last, dir_fd=parent)


def scan(folder: Folder, limit: int) -> dict[str, str]:
    """Return the version of each file by path. A version changes whenever the file is written. A folder has the version
    "". Stops after `limit` entries."""
    found: dict[str, str] = {}
    for _, path, state in _walk(folder):
        if state is not None and stat.S_ISDIR(state.st_mode):
            found[path] = ""
        elif state is not None and stat.S_ISREG(state.st_mode):
            found[path] = _version(state)
        if len(found) >= limit:
            break
    return found


def is_cut_off(scanned: dict[str, str]) -> bool:
    """Return whether `scan` skipped the contents of some folder because of its depth."""
    return any(not version and path.count("/") >= _MAX_DEPTH for path, version in scanned.items())


def carry(source: Folder, target: Folder, before: dict[str, str], after: dict[str, str], owner: int) -> None:
    """Copy the changes in `source` between the scans `before` and `after` to `target`. Holes in sparse files stay
    holes, so the copy needs no more disk space than `source`. Raises `OSError`, for example when the disk is full.
    """
    gone = [path for path in before if path not in after or bool(before[path]) != bool(after[path])]
    for path in sorted(gone, reverse=True):
        *names, last = _names(path)
        with suppress(OSError), _inside(target, names) as parent:
            (os.unlink if before[path] else os.rmdir)(last, dir_fd=parent)
    for path in sorted(path for path in after if after[path] != before.get(path)):
        *names, last = _names(path)
        with _inside(target, names) as parent:
            if after[path]:
                with _inside(source, names) as origin:
                    _copy(last, origin, parent, owner)
            else:
                _make_folder(last, parent, owner)


def _copy(name: str, source: int, target: int, owner: int) -> None:
    taken = _open_file(name, source)
    try:
        incoming = f".carried-{os.urandom(8).hex()}"
        written = os.open(incoming, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=target)
        try:
            size, at = os.fstat(taken).st_size, 0
            os.ftruncate(written, size)
            while at < size:
                try:
                    at = os.lseek(taken, at, os.SEEK_DATA)
                except OSError:
                    break  # the rest of the file is a hole
                end = os.lseek(taken, at, os.SEEK_HOLE)
                os.lseek(written, at, os.SEEK_SET)
                while at < end and (sent := os.sendfile(written, taken, at, end - at)):
                    at += sent
            if owner:
                os.fchown(written, owner, owner)
            os.rename(incoming, name, src_dir_fd=target, dst_dir_fd=target)
        except BaseException:
            os.unlink(incoming, dir_fd=target)
            raise
        finally:
            os.close(written)
    finally:
        os.close(taken)


def clear(folder: Folder) -> None:
    """Delete everything in a folder, however deep it is. Moves the entries of nested folders to the top folder, so
    `clear` needs no recursion."""
    try:
        top = open_folder(folder)
    except OSError:
        return
    try:
        moved = 0
        while names := os.listdir(top):
            before = moved
            removed = 0
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                    removed += 1
                    continue
                except OSError:
                    inner = _open_folder(name, top)
                if inner is None:
                    continue
                try:
                    for below in os.listdir(inner):
                        try:
                            os.unlink(below, dir_fd=inner)
                        except OSError:
                            moved += 1
                            with suppress(OSError):
                                os.chmod(below, 0o700, dir_fd=inner)
                            os.rename(below, f".moved-{moved}-{os.urandom(8).hex()}", src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                with suppress(OSError):
                    os.rmdir(name, dir_fd=top)
                    removed += 1
            if not removed and moved == before:
                return
    finally:
        os.close(top)


def _version(state: os.stat_result) -> str:
    return f"{state.st_ino}-{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}"


def _written_out(path: str) -> str:
    return path if path.isascii() else _NO_UTF8.sub(lambda found: f"\0{ord(found[0]) - 0xDC00:02x}", path)


def _names(path: str) -> list[str]:
    """Split a path into names, and decode the bytes that `SandboxFile.path` escapes. Raises `SandboxFailed` for an
    invalid path."""
    names = _WRITTEN_OUT.sub(lambda found: chr(0xDC00 + int(found[1], 16)), path).split("/")
    if not all(names) or any(name in (".", "..") or "\0" in name for name in names):
        raise SandboxFailed(f"{path!r} is not the path of a file.")
    return names


@contextmanager
def _inside(folder: Folder, names: list[str], owner: int | None = None) -> Iterator[int]:
    """Open the nested folder that `names` lead to, and yield its descriptor. With `owner` (a user id, 0 for the current
    user), create missing folders. Raises `OSError`."""
    opened = open_folder(folder)
    try:
        for name in names:
            if owner is not None:
                _make_folder(name, opened, owner)
            inner = _open_folder(name, opened)
            if inner is None:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            os.close(opened)
            opened = inner
        yield opened
    finally:
        os.close(opened)


def _make_folder(name: str, parent: int, owner: int) -> None:
    """Create a folder unless it exists."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
        if owner:
            os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)


def _open(name: str, parent: int, flags: int, mode: int) -> int:
    """Open an existing file or folder. If its current mode forbids access, set the mode to `mode` and try again. Raises
    `OSError`."""
    try:
        return os.open(name, flags, dir_fd=parent)
    except PermissionError:
        os.chmod(name, mode, dir_fd=parent)
        return os.open(name, flags, dir_fd=parent)


def _open_file(name: str, parent: int) -> int:
    return _open(name, parent, _FILE, 0o600)


def _open_folder(name: str, parent: int) -> int | None:
    with suppress(OSError):
        return _open(name, parent, _FOLDER, 0o700)
    return None


def _walk(folder: Folder) -> Iterator[tuple[int, str, os.stat_result | None]]:
    """Yield the depth, path and `stat` result of each entry in a folder, recursively down to `_MAX_DEPTH`. The `stat`
    result is None if the entry was deleted meanwhile."""
    with suppress(OSError):
        yield from _below(open_folder(folder), "", 0)


def _below(opened: int, prefix: str, depth: int) -> Iterator[tuple[int, str, os.stat_result | None]]:
    try:
        with os.scandir(opened) as entries:
            for entry in entries:
                path = prefix + entry.name
                yield depth, path, _state(entry)
                if depth < _MAX_DEPTH and entry.is_dir(follow_symlinks=False):
                    inner = _open_folder(entry.name, opened)
                    if inner is not None:
                        yield from _below(inner, path + "/", depth + 1)
    except OSError:
        return
    finally:
        os.close(opened)


def _state(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None
