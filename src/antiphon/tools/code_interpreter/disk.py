"""Reads, writes and measures one machine's files from outside the sandbox. Foreign code made them and may be changing
them.

Lives here: how much there is, reading, writing, deleting. Not here: when (`local.py`).

All access uses descriptors of folders and never follows links. Code inside can make neither links nor pipes, but this
module does not rely on that. All of it blocks: call it in a thread. A folder is a path, or a descriptor where only that
leads to it.

Names are what `os` makes of them here: bytes that are no UTF-8 are surrogates. `SandboxFile` keeps such texts from
other modules.

Invariants: no path leaves the folder, whatever it holds; a file's name is no reason to leave it out.
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
    """The sandbox itself failed; the message can be shown to the model and to clients."""


@dataclass(frozen=True, slots=True)
class SandboxFile:
    """A file of a machine: its path in the working folder, size in bytes, and what differs once it is written again.

    A name is bytes, which code chooses: those that are no UTF-8 are written out in `path`, a NUL and two hexadecimal
    digits each. No name has a NUL, so no two names are one path, and every file can be read by its path.
    """

    path: str
    size: int
    version: str


@dataclass(slots=True)
class DiskUse:
    """The size of a machine: bytes on the disk, files and folders. `deep`: its folders are nested too deeply to
    count."""

    bytes: int = 0
    count: int = 0
    deep: bool = False


def open_folder(folder: Folder, name: str = ".") -> int:
    """A descriptor of the folder, or of one in it. Raises `OSError`."""
    return os.open(folder / name, _FOLDER) if isinstance(folder, Path) else os.open(name, _FOLDER, dir_fd=folder)


def use_of(folder: Folder, limit: int, least: int = 0) -> DiskUse:
    """Add up a folder. Each file counts with at least `least` bytes. Stops counting beyond `limit` entries."""
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
    """Regular files by path, up to a limit."""
    found = []
    for _, path, state in _walk(folder):
        if state is not None and stat.S_ISREG(state.st_mode):
            found.append(SandboxFile(_written_out(path), state.st_size, _version(state)))
            if len(found) >= limit:
                break
    return sorted(found, key=lambda file: file.path)


def read_file(folder: Folder, path: str, start: int, limit: int) -> bytes:
    """Bytes of a regular file. Raises `SandboxFailed` when there is none."""
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
    """Move a finished file in from `source`. Replaces an existing file and makes missing folders."""
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
    """Delete a file, if it is there."""
    *names, last = _names(path)
    with suppress(OSError), _inside(folder, names) as parent:
        os.unlink(last, dir_fd=parent)


def scan(folder: Folder, limit: int) -> dict[str, str]:
    """All files and folders by path, each with a version that changes when it is rewritten."""
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
    """Whether there are folders so deep that `scan` did not look into them."""
    return any(not version and path.count("/") >= _MAX_DEPTH for path, version in scanned.items())


def carry(source: Folder, target: Folder, before: dict[str, str], after: dict[str, str], owner: int) -> None:
    """Apply the changes of `source` to `target`. Raises `OSError`, for example when the disk is full. Holes stay holes,
    so it writes no more bytes than the files in `source` take.
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
                    break  # nothing but a hole to its end
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
    """Empty a folder of any depth. It moves deeper folders up first."""
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
    """The names in a path of ours, or in one that was written out."""
    names = _WRITTEN_OUT.sub(lambda found: chr(0xDC00 + int(found[1], 16)), path).split("/")
    if not all(names) or any(name in (".", "..") or "\0" in name for name in names):
        raise SandboxFailed(f"{path!r} is not the path of a file.")
    return names


@contextmanager
def _inside(folder: Folder, names: list[str], owner: int | None = None) -> Iterator[int]:
    """A descriptor of the folder that these names lead to. With `owner` (0: who we are) folders that lack are made."""
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
    """Make a folder, unless it is there."""
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
        if owner:
            os.chown(name, owner, owner, dir_fd=parent, follow_symlinks=False)


def _open(name: str, parent: int, flags: int, mode: int) -> int:
    """Open an existing file or folder. One whose mode forbids access gets `mode` first. Raises `OSError`."""
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
    """Everything below: depth, path, and state (None: deleted meanwhile). Nothing below the deepest level."""
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
