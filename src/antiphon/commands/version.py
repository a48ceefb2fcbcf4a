"""Implements `antiphon version`: prints the version of Antiphon, Python and the platform."""

from __future__ import annotations

import argparse
import json
import platform

from antiphon import __version__, compiled


def run(arguments: argparse.Namespace) -> int:
    """Print the versions."""
    python = platform.python_version()
    if arguments.json:
        told = {"version": __version__, "compiled": compiled(), "python": python, "platform": platform.platform()}
        print(json.dumps(told))
    else:
        build = " (compiled)" if compiled() else ""
        print(f"antiphon {__version__}{build}, Python {python}, {platform.platform()}")
    return 0
