"""Chooses the data folder when no setting names one.

Lives here: the rule alone. Not here: the setting `data` (`config/settings.py`), creating the folder (`app/`). The check
for containers (`commands/health.py`) uses the rule too, so this module imports only the standard library.

The rule, in this order:

1. `.antiphon` in the current folder, if it exists. An earlier start made it.
2. `.antiphon` in the current folder, if that is a checkout of Antiphon.
3. `$XDG_DATA_HOME/antiphon`, and without that variable `~/.local/share/antiphon`, as the XDG Base Directory
   Specification says. It requires that a relative path in the variable is ignored, too.
4. `.antiphon` in the current folder, if there is no home folder.

Invariant: the same folder and the same environment give the same answer before and after the first start. An existing
`.antiphon` is preferred for that reason, and a checkout does not depend on one.

    >>> default_data_folder("/srv/app", {"HOME": "/home/anna"})
    '/home/anna/.local/share/antiphon'
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping

IN_THE_CURRENT_FOLDER = ".antiphon"
"""The folder in a checkout, and the default that the reference shows."""
_NAME = "antiphon"


def default_data_folder(current: str, environ: Mapping[str, str]) -> str:
    """The data folder for a process in the folder `current`. A folder in `current` is returned as a relative path."""
    if os.path.isdir(os.path.join(current, IN_THE_CURRENT_FOLDER)) or _is_checkout(current):
        return IN_THE_CURRENT_FOLDER
    home = _data_home(environ)
    return os.path.join(home, _NAME) if home else IN_THE_CURRENT_FOLDER


def _is_checkout(folder: str) -> bool:
    """Whether this is Antiphon's source tree."""
    files = ("pyproject.toml", os.path.join("src", _NAME, "__init__.py"))
    return all(os.path.isfile(os.path.join(folder, file)) for file in files)


def _data_home(environ: Mapping[str, str]) -> str:
    """Where programs keep a person's data; empty for a user without a home folder, such as a container's."""
    given = environ.get("XDG_DATA_HOME", "")
    if os.path.isabs(given):
        return given
    home = environ.get("HOME", "")
    # A user without a home folder has `/` (also written as `//`, which `normpath` keeps), or a folder that does not
    # exist.
    usable = os.path.isabs(home) and os.path.isdir(home) and not os.path.samefile(home, "/")
    return os.path.join(home, ".local", "share") if usable else ""
