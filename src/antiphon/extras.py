"""Error messages that tell an operator how to install a missing optional dependency ("extra").

Lives here: the install command for error messages. Not here: which code needs an extra, and what works without it.

Invariant: the command installs packages from a package index into the environment of the running Python. Therefore the
command works however Antiphon itself was installed.
"""

from __future__ import annotations

import re
import shlex
import sys

from antiphon.errors import ConfigError


def how_to_install(extra: str) -> str:
    """The instructions to install the packages of this extra into this installation, without a final period."""
    # Only error messages need this import.
    from importlib.util import find_spec

    packages = " ".join(shlex.quote(one) for one in _packages(extra))
    if not packages:
        return f"install the packages of the extra '{extra}' in pyproject.toml"
    if find_spec("pip") is None:
        # An environment that uv created has no pip. The container image has no pip either.
        return f"install {packages} into {sys.prefix}; an image gets it by the build argument EXTRAS"
    return f"{shlex.quote(sys.executable)} -m pip install {packages}"


def extra_missing(what: str, extra: str) -> ConfigError:
    """The error for a setting or command (`what`) that needs an extra which is not installed."""
    return ConfigError(f"{what} needs the extra '{extra}', which is not installed: {how_to_install(extra)}")


def _packages(extra: str) -> list[str]:
    from importlib.metadata import PackageNotFoundError, requires

    try:
        needed = requires("antiphon") or []
    except PackageNotFoundError:
        return []
    of_extra = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    return [name.strip() for name, _, marker in (one.partition(";") for one in needed) if of_extra.search(marker)]
