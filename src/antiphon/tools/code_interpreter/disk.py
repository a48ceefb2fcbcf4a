"""The files of one machine, seen from outside: foreign code made them, and may be changing them.

Lives here: how much there is, reading, writing, deleting. Not here: when (`local.py`).

Everything goes by descriptors of folders, never through links: code inside can make neither links nor pipes, and this
does not rely on it. All of it blocks: call it in a thread.

Invariant: no path leaves the folder, whatever it holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from antiphon.tools.code_interpreter.port import SandboxFailed, SandboxFile

__all__ = ["Use", "clear", "list_files", "read_file", "remove_changed", "remove_file", "use_of", "write_file"]

_DEEPEST = 32
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(slots=True)
class Use:
    """What a machine takes: bytes on the disk, files and folders. `deep`: folders within folders without end."""

    bytes: int = 0
    count: int = 0
    deep: bool = False


def use_of(folder: Path, most: int) -> Use:
    """Add up a folder; it stops counting beyond `most` entries."""
    use = Use()
    for depth, _, entry, _ in _walk(folder):
        use.count += 1
        if depth >= _DEEPEST:
            use.deep = True
        if use.deep or use.count > most:
            break
        with suppress(OSError):
            use.bytes += entry.stat(follow_symlinks=False).st_blocks * 512
    return use


def list_files(folder: Path, most: int) -> list[SandboxFile]:
    """Regular files by path, at most so many."""
    found = []
    for _, path, entry, _ in _walk(folder):
        try:
            state = entry.stat(follow_symlinks=False)
            path.encode()
        except (OSError, UnicodeEncodeError):
            continue
        if stat.S_ISREG(state.st_mode):
            found.append(SandboxFile(path, state.st_size, _version(state)))
            if len(found) >= most:
                break
    return sorted(found, key=lambda file: file.path)


def read_file(folder: Path, path: str, start: int, most: int) -> bytes:
    """Bytes of a regular file. Raises `SandboxFailed` when there is none."""
    *names, last = _names(path)
    try:
        with _inside(folder, names) as parent:
            try:
                opened = os.open(last, _FILE, dir_fd=parent)
            except PermissionError:
                os.chmod(last, 0o600, dir_fd=parent)
                opened = os.open(last, _FILE, dir_fd=parent)
            try:
                if not stat.S_ISREG(os.fstat(opened).st_mode):
                    raise SandboxFailed(f"{path!r} is not a file.")
                return os.pread(opened, most, start)
            finally:
                os.close(opened)
    except OSError:
        raise SandboxFailed(f"The file {path!r} does not exist any more.") from None


def write_file(folder: Path, path: str, source: Path, owner: int) -> SandboxFile:
    """Move a finished file in from `source`, in place of what is there."""
    *names, last = _names(path)
    try:
        with _inside(folder, names) as parent:
            os.chmod(source, 0o644)
            if owner:
                os.chown(source, owner, owner)
            os.rename(source, last, dst_dir_fd=parent)
            state = os.stat(last, dir_fd=parent, follow_symlinks=False)
    except OSError as error:
        raise SandboxFailed(f"The file {path!r} cannot be written: {error.strerror}.") from None
    return SandboxFile(path, state.st_size, _version(state))


def remove_file(folder: Path, path: str) -> None:
    """Delete a file, if it is there."""
    *names, last = _names(path)
    with suppress(OSError), _inside(folder, names) as parent:
        os.unlink(last, dir_fd=parent)


def remove_changed(folder: Path, before: Iterable[SandboxFile]) -> None:
    """Delete every file that is not as it was `before`. Code cannot forge when a file was changed last."""
    kept = {(file.path, file.version) for file in before}
    deep = False
    for depth, path, entry, parent in _walk(folder):
        deep = deep or depth >= _DEEPEST
        with suppress(OSError):
            state = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(state.st_mode) and (path, _version(state)) not in kept:
                os.unlink(entry.name, dir_fd=parent)
    if deep:
        # Nobody makes such a tree by accident, and where it begins cannot be told.
        clear(folder)


def clear(folder: Path) -> None:
    """Empty a folder, however deep: what lies deeper is moved up first."""
    try:
        top = os.open(folder, _FOLDER)
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


def _names(path: str) -> list[str]:
    names = path.split("/")
    if not all(names) or any(name in (".", "..") or "\0" in name for name in names):
        raise SandboxFailed(f"{path!r} is not the path of a file.")
    return names


@contextmanager
def _inside(folder: Path, names: list[str]) -> Iterator[int]:
    """A descriptor of the folder that these names lead to."""
    opened = os.open(folder, _FOLDER)
    try:
        for name in names:
            inner = _open_folder(name, opened)
            if inner is None:
                raise FileNotFoundError(name)
            os.close(opened)
            opened = inner
        yield opened
    finally:
        os.close(opened)


def _open_folder(name: str, parent: int) -> int | None:
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except PermissionError:
        # Made so that nobody may look into it.
        try:
            os.chmod(name, 0o700, dir_fd=parent)
            return os.open(name, _FOLDER, dir_fd=parent)
        except OSError:
            return None
    except OSError:
        return None


def _walk(folder: Path) -> Iterator[tuple[int, str, os.DirEntry[str], int]]:
    """Everything below: depth, path, entry, its folder's descriptor. Nothing below the deepest level."""
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return
    yield from _below(top, "", 0)


def _below(opened: int, prefix: str, depth: int) -> Iterator[tuple[int, str, os.DirEntry[str], int]]:
    try:
        with os.scandir(opened) as entries:
            for entry in entries:
                path = prefix + entry.name
                yield depth, path, entry, opened
                if depth < _DEEPEST and entry.is_dir(follow_symlinks=False):
                    inner = _open_folder(entry.name, opened)
                    if inner is not None:
                        yield from _below(inner, path + "/", depth + 1)
    except OSError:
        return
    finally:
        os.close(opened)
