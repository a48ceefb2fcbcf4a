"""The command line: arguments become settings and a command runs.

Lives here: the commands, their flags, and how an error ends the process. Not here: what a command does (`commands/`);
commands are imported only when they run, so that `antiphon --help` is quick.

Invariant: what went wrong with settings is one line on standard error and exit status 2; a command's own status
otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from antiphon import __version__
from antiphon.config import Settings, load_settings
from antiphon.errors import AntiphonError, ConfigError
from antiphon.settings_sources import CONFIG_VARIABLE

__all__ = ["main", "make_parser"]

# flag, path of the setting, help
_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--upstream": (("upstream", "url"), "base URL of the chat server, for example http://127.0.0.1:11434/v1"),
    "--listen": (("listen",), "where clients connect, HOST:PORT (port 0: any free port)"),
    "--data": (("data",), "data folder: databases, keys, sockets"),
    "--mode": (("mode",), "auto, relay or drive (envoy door)"),
    "--log-level": (("log", "level"), "debug, info, warning or error"),
    "--log-format": (("log", "format"), "auto, json or console"),
}
_UP_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--workers": (("workers",), "sidecar or HTTP door processes"),
    "--door": (("door",), "envoy or http"),
    "--envoy": (("envoy", "binary"), "path of the Envoy binary"),
}
_SIDECAR_FLAGS: dict[str, tuple[tuple[str, ...], str]] = {
    "--grpc": (("sidecar", "grpc"), "where the ext_proc service listens: unix:PATH or HOST:PORT"),
    "--http": (("sidecar", "http"), "where the sidecar's HTTP port listens: unix:PATH or HOST:PORT"),
    "--model-door": (("sidecar", "model_door"), "Envoy's listener for the sidecar's model calls"),
}

_COMMANDS: dict[str, tuple[str, tuple[dict[str, tuple[tuple[str, ...], str]], ...]]] = {
    "up": ("start everything: sidecar processes and Envoy, or the HTTP door", (_FLAGS, _UP_FLAGS)),
    "extproc": ("the sidecar alone: ext_proc over gRPC, and its HTTP port", (_FLAGS, _SIDECAR_FLAGS)),
    "serve": ("the HTTP door alone", (_FLAGS,)),
    "envoy-config": (
        "print the Envoy bootstrap, or with --snippet the parts an existing Envoy needs",
        (_FLAGS, _UP_FLAGS, _SIDECAR_FLAGS),
    ),
    "config": ("print the effective settings, secrets redacted", (_FLAGS, _UP_FLAGS, _SIDECAR_FLAGS)),
}


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="antiphon", description="The OpenAI Responses API in front of any Chat Completions server."
    )
    parser.add_argument("--version", action="version", version=f"antiphon {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, groups) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
        for group in groups:
            for flag, (path, description) in group.items():
                command.add_argument(flag, dest=".".join(path), help=description)
        if name == "extproc":
            command.add_argument("--worker", type=int, default=0, help=argparse.SUPPRESS)
        if name in ("extproc", "serve"):
            command.add_argument("--parent-pipe", type=int, help=argparse.SUPPRESS)
        if name == "serve":
            command.add_argument("--shared-port", action="store_true", help=argparse.SUPPRESS)
        if name == "envoy-config":
            command.add_argument("--snippet", action="store_true", help="only the parts an existing Envoy needs")
    demo = commands.add_parser("demo-upstream", help="a small scripted chat server, for trying things out")
    demo.add_argument("--listen", default="127.0.0.1:8081", help="HOST:PORT (port 0: any free port)")
    check = commands.add_parser("health", help="exit 0 when a running instance answers (for container health checks)")
    check.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    check.add_argument("url", nargs="?", help="http://HOST:PORT or unix:PATH; default: where the settings say")
    return parser


def settings_of(arguments: argparse.Namespace) -> Settings:
    """The effective settings of a parsed command line. Raises `ConfigError`."""
    flags: dict[str, Any] = {}
    for name, value in vars(arguments).items():
        known = any(
            ".".join(path) == name for group in (_FLAGS, _UP_FLAGS, _SIDECAR_FLAGS) for path, _ in group.values()
        )
        if not known or value is None:
            continue
        section = flags
        *above, last = name.split(".")
        for part in above:
            section = section.setdefault(part, {})
        section[last] = value
    given = getattr(arguments, "config", None) or os.environ.get(CONFIG_VARIABLE)
    return load_settings(flags, dict(os.environ), Path(given) if given else None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    module = import_module(f"antiphon.commands.{parsed.command.replace('-', '_')}")
    try:
        status = module.run(parsed)
    except ConfigError as error:
        print(f"antiphon: {error}", file=sys.stderr)
        return 2
    except AntiphonError as error:
        print(f"antiphon: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return int(status)
