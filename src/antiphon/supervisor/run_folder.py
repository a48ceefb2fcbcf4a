"""Manages the folder of one run of `antiphon up`, which contains the run's sockets and generated files.

This module chooses the folder's path, creates the folder and removes it. `generation.py` writes the files in the
folder.

Invariants: only this user can access the folder. Paths of sockets in the folder fit in the system's limit. A run
removes its folder at its end. If a run was killed, the next run removes the folder. Each run holds a lock in its
folder, so other runs do not remove it.
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
    """Create the run's folder below the data folder, and remove it at the end of the block. If socket paths below the
    data folder would be too long, the folder is below `short`. `forget` gets the folder of each killed run, and removes
    that run's resources outside the folder."""
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
    """Write a file that only this user can read at any moment. An unchanged file is not written again, so that a child
    can restart on a full disk."""
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
    """Remove the folders of killed runs. A free lock shows that a run was killed."""
    for lock in above.glob("antiphon-*/lock"):
        with contextlib.suppress(OSError), lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            forget(lock.parent)
            shutil.rmtree(lock.parent, ignore_errors=True)
