"""The data folder, and the keys that the gateway generates in it when none is configured.

Lives here: the folder, which is for this user alone, and the file of a key. Not here: what a key is for, and what is
lost without it (`app/keys.py`).

Invariant: the file has mode 0600 before it holds anything; of several processes that start at once, one key wins whole;
a key is never made in the place of one that something depends on.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from antiphon.errors import ConfigError

_LEAST = 32


def local_key(folder: Path, name: str, depends: Callable[[], str] = lambda: "") -> bytes:
    """The key `name` of this data folder (64 hexadecimal digits), made when there is none. Raises `ConfigError`.

    `depends` is asked before one is made: not empty, it says what would be out of reach and what to do.
    """
    path = folder / name
    try:
        if not path.exists():
            if lost := depends():
                raise ConfigError(is_gone(path, lost))
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"data: the key file {path} cannot be made or read: {error.strerror}") from None
    if len(key) < _LEAST:
        raise ConfigError(f"data: the key file {path} holds no key; restore it, or move it away")
    return key


def is_gone(path: Path, lost: str) -> str:
    """What is said of a key that is not made again, in the start and wherever it is looked for."""
    return f"data: the key file {path} is gone, and {lost}"


def _make(path: Path) -> None:
    # Written under another name and linked: nobody ever sees half a key.
    draft = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    draft.touch(mode=0o600)
    try:
        draft.write_bytes(secrets.token_hex(32).encode())
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def prepare_data(folder: Path) -> None:
    """Create the folder. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data: the folder {folder} cannot be created: {error.strerror}; choose another with --data"
        ) from None
