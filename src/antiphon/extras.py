"""What an operator does about an optional part ("extra") that is not installed.

Lives here: the command that installs its packages into this installation, for error messages. Not here: who needs an
extra, and what works without it.

Invariant: the command names packages that an index has, and the Python that runs: it is right for an editable checkout,
for a wheel and in an image, wherever Antiphon itself came from.
"""

from __future__ import annotations

import re
import shlex
import sys

from antiphon.errors import ConfigError


def how_to_install(extra: str) -> str:
    """How the packages of this extra get into this installation, without a dot."""
    # Needed for a mistake alone.
    from importlib.util import find_spec

    packages = " ".join(shlex.quote(one) for one in _packages(extra))
    if not packages:
        return f"install the packages of the extra '{extra}' in pyproject.toml"
    if find_spec("pip") is None:
        # uv makes such folders, and the image is one.
        return f"install {packages} into {sys.prefix}; an image gets it by the build argument EXTRAS"
    return f"{shlex.quote(sys.executable)} -m pip install {packages}"


def extra_missing(what: str, extra: str) -> ConfigError:
    """The error that `what` (a setting, a command) asks for a part that is not installed."""
    return ConfigError(f"{what} needs the extra '{extra}', which is not installed: {how_to_install(extra)}")


def _packages(extra: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("antiphon") or []
    except PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [name.strip() for name, _, marker in (one.partition(";") for one in needed) if of_extra.search(marker)]
