"""Error messages that tell an operator how to install a missing optional dependency ("extra").

Lives here: the install command for error messages. Not here: which code needs an extra, and what works without it.

Invariant: the command names packages that a package index has, and the running Python. So it works for an editable
checkout, a wheel and an image, wherever Antiphon itself came from.
"""

from __future__ import annotations

import re
import shlex
import sys

from antiphon.errors import ConfigError


def how_to_install(extra: str) -> str:
    """The instructions to install the packages of this extra into this installation, without a final period."""
    # Only error messages need these.
    from importlib.util import find_spec

    packages = " ".join(shlex.quote(one) for one in _packages(extra))
    if not packages:
        return f"install the packages of the extra '{extra}' in pyproject.toml"
    if find_spec("pip") is None:
        # An environment made by uv has no pip; neither has the image.
        return f"install {packages} into {sys.prefix}; an image gets it by the build argument EXTRAS"
    return f"{shlex.quote(sys.executable)} -m pip install {packages}"


def extra_missing(what: str, extra: str) -> ConfigError:
    """The error when `what` (a setting, a command) needs an extra that is not installed."""
    return ConfigError(f"{what} needs the extra '{extra}', which is not installed: {how_to_install(extra)}")


def _packages(extra: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("antiphon") or []
    except PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [name.strip() for name, _, marker in (one.partition(";") for one in needed) if of_extra.search(marker)]
