"""Manages the run folder: the folder of one running `antiphon up`, with its sockets and generated files.

This module chooses the folder's path, creates the folder and removes it. `generation.py` writes the files in the
folder.

Invariants: only this user can access the folder. The paths of sockets in the folder are not longer than the system
allows. `antiphon up` removes its run folder when it stops. If `antiphon up` was killed, the next `antiphon up` removes
the folder. A lock file protects the folder of an `antiphon up` that still runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from antiphon.errors import ConfigError

# The path of a Unix socket has at most 107 bytes (103 on macOS). The workers' sockets add two folders and names of up
# to 24 bytes. The sockets of Envoy's hot restart add one folder (18 bytes) and names of up to 36 bytes, which end in a
# number of up to 20 digits.
_MAX_LENGTH = 52
_SHORT = Path("/tmp")


@contextmanager
def run_folder(
    data: Path, forget: Callable[[Path], object] = lambda folder: None, *, short: Path = _SHORT
) -> Iterator[Path]:
    """Create the run folder below the data folder, and remove it at the end of the block. If the paths of sockets would
    be too long, the run folder is below `short`. For the folder of each killed `antiphon up`, call `forget`, which
    removes resources outside the folder."""
    above = data.absolute() / "run"
    if len(os.fsencode(above)) > _MAX_LENGTH:
        above = (short if short.is_dir() else Path(tempfile.gettempdir())) / f"antiphon-{os.getuid()}"
    _make_private(above)
    living = contextlib.ExitStack()
    try:
        # Without the lock in `above`, a cleanup could remove the folder that another run has just created but not
        # locked yet.
        with _locked(above / "lock"):
            _clear(above, forget)
            folder = Path(tempfile.mkdtemp(prefix="antiphon-", dir=above))
            living.enter_context(_locked(folder / "lock"))
    except OSError as error:
        raise ConfigError(f"data: Antiphon cannot write to {above}: {error.strerror}") from None
    try:
        with living:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read, even while the function writes it. If the file already has this text,
    do not write it. So a child can restart even if the disk is full."""
    with contextlib.suppress(OSError):
        if path.read_text() == text:
            return
    new = path.with_name(path.name + ".new")
    new.touch(mode=0o600)
    new.write_text(text)
    # A concurrent reader sees the complete old file or the complete new file.
    new.replace(path)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ConfigError(f"data: the folder {folder} cannot be created: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{folder} must be a folder to which only this user has access. Remove it, or use a shorter data path"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.touch(mode=0o600)
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _clear(above: Path, forget: Callable[[Path], object]) -> None:
    """Remove the run folders of `antiphon up` processes that were killed. A killed process no longer locks its
    folder."""
    for lock in above.glob("antiphon-*/lock"):
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            forget(lock.parent)
            shutil.rmtree(lock.parent, ignore_errors=True)
