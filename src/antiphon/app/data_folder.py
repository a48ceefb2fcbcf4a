"""The data folder, made for this user alone.

Lives here: nothing else, so that what only needs the folder does not import all that a worker serves with. Not here:
the keys in it (`keys.py`), the stores (`build.py`).
"""

from __future__ import annotations

from pathlib import Path

from antiphon.errors import ConfigError


def prepare_data(folder: Path) -> None:
    """Create the folder. Raises `ConfigError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"data: the folder {folder} cannot be created: {error.strerror}; choose another with --data"
        ) from None
