"""The command line: arguments become settings and a command runs.

Lives here: the commands, their flags, and how an error ends the process. Not here: what a command does (`commands/`);
commands are imported only when they run, so that `antiphon --help` is quick.

Invariant: what went wrong with settings is one line on standard error and exit status 2; a command's own status
otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from antiphon import __version__
from antiphon.commands.flags import COMMON_FLAGS, SIDECAR_FLAGS, UP_FLAGS
from antiphon.errors import AntiphonError, ConfigError

__all__ = ["main", "make_parser"]

_COMMANDS: dict[str, tuple[str, tuple[dict[str, tuple[tuple[str, ...], str]], ...]]] = {
    "up": ("start everything: sidecar processes and Envoy, or the HTTP door", (COMMON_FLAGS, UP_FLAGS)),
    "extproc": ("the sidecar alone: ext_proc over gRPC, and its HTTP port", (COMMON_FLAGS, SIDECAR_FLAGS)),
    "serve": ("the HTTP door alone", (COMMON_FLAGS,)),
    "envoy-config": (
        "print the Envoy bootstrap, or with --snippet the parts an existing Envoy needs",
        (COMMON_FLAGS, UP_FLAGS, SIDECAR_FLAGS),
    ),
    "doctor": (
        "check this machine, Envoy and the upstreams; say what they can do and what to change",
        (COMMON_FLAGS, UP_FLAGS, SIDECAR_FLAGS),
    ),
    "config": ("print the effective settings, secrets redacted", (COMMON_FLAGS, UP_FLAGS, SIDECAR_FLAGS)),
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
        if name == "doctor":
            command.add_argument("--model", help="the model to ask; default: the first that is listed")
            command.add_argument("--key-env", metavar="NAME", help="variable with a client's key, for passthrough")
            command.add_argument("--images", action="store_true", help="also ask whether images are taken")
            command.add_argument("--json", action="store_true", help="the findings as JSON")
        if name == "envoy-config":
            command.add_argument("--snippet", action="store_true", help="only the parts an existing Envoy needs")
    demo = commands.add_parser("demo-upstream", help="a small scripted chat server, for trying things out")
    demo.add_argument("--listen", default="127.0.0.1:8081", help="HOST:PORT (port 0: any free port)")
    admin = commands.add_parser(
        "admin",
        help="what is kept, by owner: list, export, delete; purge what is too old; give space back",
        description="Works on the data folder, whether or not a server is using it.",
    )
    admin.add_argument("action", choices=("owners", "export", "delete-owner", "purge", "vacuum"))
    admin.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    admin.add_argument("--data", dest="data", help=COMMON_FLAGS["--data"][1])
    admin.add_argument("--owner", help="the owner, as 'owners' lists it")
    admin.add_argument("--token-env", metavar="NAME", help="variable with the owner's bearer token")
    admin.add_argument("--files", type=Path, metavar="FOLDER", help="export: also write the files' contents there")
    admin.add_argument("--yes", action="store_true", help="delete-owner: do it; without it only say what would go")
    check = commands.add_parser("health", help="exit 0 when a running instance answers (for container health checks)")
    check.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings")
    check.add_argument("url", nargs="?", help="http://HOST:PORT or unix:PATH; default: where the settings say")
    return parser


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
