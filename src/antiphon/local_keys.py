"""Keys that nobody configured: made once in the data folder, the same for all workers and restarts.

Lives here: the file. Not here: what a key is for (`app.py`).

Invariant: the file has mode 0600 before it holds anything; of several processes that start at once, one key wins whole.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from antiphon.errors import ConfigError

__all__ = ["local_key"]

_LEAST = 32


def local_key(folder: Path, name: str) -> bytes:
    """The key `name` of this data folder (64 hexadecimal digits), made when there is none. Raises `ConfigError`."""
    path = folder / name
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"data: the key file {path} cannot be made or read: {error.strerror}") from None
    if len(key) < _LEAST:
        raise ConfigError(f"data: the key file {path} holds no key; remove it, and a new one is made")
    return key


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
