"""Chooses the data folder when no setting names one.

`config/settings.py` defines the setting `data`, and `local_keys.py` creates the folder. The health check of containers
(`commands/health.py`) also uses this module. The health check must start fast, so this module imports only the standard
library.

The rule chooses the first folder in this list whose condition holds:

1. `.antiphon` in the current folder, if it exists, because an earlier start created it.
2. `.antiphon` in the current folder, if the current folder is a checkout of Antiphon.
3. `$XDG_DATA_HOME/antiphon`, or `~/.local/share/antiphon` if that variable is unset, as in the XDG Base Directory
   Specification. As the specification requires, the rule ignores a relative path in the variable.
4. `.antiphon` in the current folder, if the user has no home folder.

Invariant: the same current folder and the same environment give the same data folder before and after the first start.
Therefore the rule prefers an existing `.antiphon`.

    >>> default_data_folder("/srv/app", {"HOME": "/home/anna"})
    '/home/anna/.local/share/antiphon'
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

IN_THE_CURRENT_FOLDER = ".antiphon"
"""The name of a data folder in the current folder. The settings reference shows this value as the default."""
_NAME = "antiphon"


def default_data_folder(current: str, environ: Mapping[str, str]) -> str:
    """The data folder for a process whose current folder is `current`. For a data folder inside `current`, the function
    returns a relative path."""
    if os.path.isdir(os.path.join(current, IN_THE_CURRENT_FOLDER)) or _is_checkout(current):
        return IN_THE_CURRENT_FOLDER
    home = _data_home(environ)
    return os.path.join(home, _NAME) if home else IN_THE_CURRENT_FOLDER


def _is_checkout(folder: str) -> bool:
    """Whether `folder` is Antiphon's source tree."""
    files = ("pyproject.toml", os.path.join("src", _NAME, "__init__.py"))
    return all(os.path.isfile(os.path.join(folder, file)) for file in files)


def _data_home(environ: Mapping[str, str]) -> str:
    """The base folder for a user's data, as in the XDG specification. The result is an empty string if the user has no
    home folder, as in many containers."""
    given = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(given):
        return given
    home = environ.get("HOME", "")
    # For a user without a home folder, HOME is `/` or names a folder that does not exist. `samefile` also recognizes
    # `//`, which `normpath` does not change.
    usable = os.path.isabs(home) and os.path.isdir(home) and not os.path.samefile(home, "/")
    return os.path.join(home, ".local", "share") if usable else ""
