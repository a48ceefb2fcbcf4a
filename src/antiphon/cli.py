"""The command line: parses arguments, reads settings and runs one command.

Lives here: the commands, their flags, and how an error ends the process. Not here: what a command does (`commands/`);
commands are imported only when they run, so that `antiphon --help` is quick.

Invariant: what is wrong with settings is told on standard error, all of it, a line each, with exit status 2; a
command's own status otherwise.
"""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from antiphon import __version__, compiled
from antiphon.commands import health
from antiphon.commands.flags import COMMON_FLAGS, DATA, ENVOY_FLAGS, SIDECAR_FLAGS, UP_FLAGS, Flag, add_flags
from antiphon.config.problems import advice
from antiphon.errors import AntiphonError, ConfigError

_COMMANDS: dict[str, tuple[str, tuple[dict[str, Flag], ...]]] = {
    "up": ("start everything: sidecar processes and Envoy, or the HTTP door", (COMMON_FLAGS, UP_FLAGS, ENVOY_FLAGS)),
    "extproc": ("the sidecar alone: ext_proc over gRPC, and its HTTP port", (COMMON_FLAGS, SIDECAR_FLAGS)),
    "serve": ("the HTTP door alone", (COMMON_FLAGS,)),
    "envoy-config": (
        "print the Envoy bootstrap, or with --for snippet the parts an existing Envoy needs",
        (COMMON_FLAGS, UP_FLAGS, ENVOY_FLAGS, SIDECAR_FLAGS),
    ),
    "doctor": (
        "check this machine, Envoy and the upstreams; say what they can do and what to change",
        (COMMON_FLAGS, UP_FLAGS, ENVOY_FLAGS, SIDECAR_FLAGS),
    ),
    "config": ("print the effective settings, secrets redacted", (COMMON_FLAGS, UP_FLAGS, ENVOY_FLAGS, SIDECAR_FLAGS)),
}
_EXAMPLES = {
    "up": "antiphon up --upstream http://127.0.0.1:11434/v1",
    "extproc": "antiphon extproc --data /run/antiphon --upstream http://vllm:8000/v1",
    "serve": "antiphon serve --upstream https://api.groq.com/openai/v1 --api-key-env GROQ_API_KEY",
    "envoy-config": "antiphon envoy-config --upstream http://vllm:8000/v1 > envoy.yaml",
    "doctor": "antiphon doctor --upstream http://127.0.0.1:11434/v1 --model llama3.2",
    "config": "antiphon config --config settings.yaml",
}
_MORE = "Everything else is a setting, in --config or in ANTIPHON_… variables: see docs/reference/configuration.md."
_ADMIN = {
    "owners": "list the owners, and how much of each kind they have",
    "export": "write everything of one owner to standard output, one JSON object a line",
    "delete-owner": "delete everything of one owner; without --yes only say what would go",
    "purge": "delete what is older than retention.* allows, and expired files",
    "vacuum": "give the space of what was deleted back to the file system",
    "backup": "write everything that is kept into one archive, while servers run",
    "restore": "make a data folder from such an archive, where there is none yet",
    "new-keys": "make new keys for those of the data folder that are lost; without --yes only say what goes with them",
    "move": "move everything of a data folder into a PostgreSQL database; killed, it goes on when it is started again",
    "keys": "compare these settings' keys with those that the machines on a shared database have",
    "usage": "what model calls took and cost: sums by owner, model, upstream and day",
}
_MIGRATE = {
    "up": "apply the steps of the schema that are missing",
    "status": "list the steps, applied and missing, and which builds can serve; exit 1 when any is missing",
    "create": "make a new empty step in the source tree (for developers)",
    "down": "undo the last step, where it can be undone; without --yes only say which",
}
# What a command has beside the flags that are settings.
_Arguments = dict[str, dict[str, Any]]
_HIDDEN = {"help": argparse.SUPPRESS}
_SET = "store_true"
_CHILD: _Arguments = {"--parent-pipe": {"type": int, **_HIDDEN}, "--ask-upstreams": {"action": _SET, **_HIDDEN}}
_OF_COMMANDS: dict[str, _Arguments] = {
    "extproc": {"--worker": {"type": int, "default": 0, **_HIDDEN}, **_CHILD},
    "serve": {**_CHILD, "--sockets": {"default": "", **_HIDDEN}, "--private-port": _HIDDEN},
    "doctor": {
        "--model": {"help": "the model to ask; default: the first that is listed"},
        "--key-env": {"metavar": "NAME", "help": "variable with a client's key, for passthrough"},
        "--images": {"action": _SET, "help": "also ask whether images are taken"},
        "--json": {"action": _SET, "help": "the findings as JSON"},
    },
    "config": {"--schema": {"action": _SET, "help": "the JSON Schema of settings files instead"}},
    "envoy-config": {
        "--for": {
            "dest": "form",
            "metavar": "FORM",
            "default": "bootstrap",
            "help": "bootstrap: a whole Envoy; snippet: only the parts an existing Envoy needs; "
            "envoy-gateway, istio: objects for Kubernetes; default: %(default)s",
        },
        "--gateway": {
            "metavar": "NAMESPACE/NAME",
            "help": "the Gateway, with --for envoy-gateway or istio; default: default/antiphon",
        },
        "--hostname": {
            "action": "append",
            "metavar": "NAME",
            "help": "a host name that Antiphon serves (may be repeated), with --for envoy-gateway or istio; "
            "default: every host",
        },
        "--own-gateway": {
            "action": _SET,
            "help": "the Gateway is for Antiphon alone: print it too, and answer every path",
        },
        "--envoy-proxy": {
            "metavar": "NAME",
            "help": "the EnvoyProxy that the Gateway already uses, with --for envoy-gateway",
        },
        "--remove": {"action": _SET, "help": "print the commands that remove Antiphon from the Gateway"},
        "--listener": {"metavar": "NAME,...", "help": "its listeners, with --for envoy-gateway; default: http"},
        "--gateway-port": {"metavar": "PORT", "help": "its listener's port, with --for istio; default: 80"},
        "--into": {"type": Path, "metavar": "FILE", "help": "with --for snippet: print this file with the parts in it"},
        "--into-listener": {"metavar": "NAME", "help": "which listener of that file"},
        "--into-virtual-host": {"metavar": "NAME", "help": "which virtual host"},
        "--snippet": {"dest": "form", "action": "store_const", "const": "snippet", "help": "--for snippet"},
        "--envoy-version": {"metavar": "1.38", "help": "for which Envoy; default: the one that 'up' would start"},
    },
}
_YES: _Arguments = {"--yes": {"action": _SET, "help": "do it"}}
_OWNER: _Arguments = {
    "--owner": {"help": "the owner, as 'owners' lists it"},
    "--token-env": {"metavar": "NAME", "help": "variable with the owner's bearer token"},
}
_OF_ADMIN: dict[str, _Arguments] = {
    "export": {
        **_OWNER,
        "--files": {"type": Path, "metavar": "FOLDER", "help": "also write the files' contents there"},
    },
    "move": {
        "--from": {"metavar": "URL", "dest": "source", "help": "sqlite:/FOLDER; default: the data folder"},
        "--to": {"metavar": "URL", "dest": "target", "help": "postgresql://…; default: state.url"},
    },
    "keys": {"--accept": {"action": _SET, "help": "the database goes with these keys from now on"}},
    "backup": {
        "--to": {"type": Path, "metavar": "FILE", "dest": "target", "help": "the archive to write"},
        "--without-keys": {"action": _SET, "help": "leave out the keys of the data folder"},
    },
    "restore": {"--from": {"type": Path, "metavar": "FILE", "dest": "source", "help": "the archive to read"}},
    "usage": {
        **_OWNER,
        "--by": {"default": "model", "help": "day, owner, model, upstream, or several with commas"},
        "--since": {"default": "", "metavar": "YYYY-MM-DD", "help": "the first day (UTC)"},
        "--until": {"default": "", "metavar": "YYYY-MM-DD", "help": "the last day (UTC)"},
        "--json": {"action": _SET, "help": "one JSON object a line"},
        "--forget-before": {"metavar": "YYYY-MM-DD", "help": "delete the sums of the days before"},
        **_YES,
    },
    "delete-owner": {**_OWNER, **_YES},
    "new-keys": _YES,
}
_DATABASE: _Arguments = {"--database": {"metavar": "NAME", "help": "which, as 'status' lists them; default: the first"}}
_OF_MIGRATE: dict[str, _Arguments] = {
    "up": {"--seconds": {"type": float, "default": 600.0, "help": "how long a step may take; %(default)g"}},
    "create": {"name": {"metavar": "NAME", "help": "small letters, digits and _"}, **_DATABASE},
    "down": {**_DATABASE, **_YES},
}


def _version() -> str:
    return f"antiphon {__version__}" + (" (compiled)" if compiled() else "")


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = _Parser(prog="antiphon", description="The OpenAI Responses API in front of any Chat Completions server.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, groups) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"Example: {_EXAMPLES[name]}. {_MORE}",
        )
        add_flags(command, *groups)
        _add_arguments(command, _OF_COMMANDS.get(name, {}))
    demo = commands.add_parser("demo-upstream", help="a small scripted chat server, for trying things out")
    demo.add_argument(
        "--listen",
        default="127.0.0.1:8081",
        metavar="HOST:PORT",
        help="where it listens (port 0: any free port); default: %(default)s",
    )
    text = "what is kept, by owner: list, export, delete; purge what is too old; give space back; backup, restore"
    _add_actions(commands, "admin", text, "Works whether or not a server runs.", _ADMIN, _OF_ADMIN)
    text = "the schema of the databases: apply what is missing, look, undo"
    _add_actions(commands, "migrate", text, "Works while servers run.", _MIGRATE, _OF_MIGRATE)
    check = commands.add_parser("health", help="exit 0 when a running instance answers (for container health checks)")
    health.add_arguments(check)
    return parser


def _add_actions(
    commands: Any, name: str, text: str, when: str, actions: dict[str, str], arguments: dict[str, _Arguments]
) -> None:
    command = commands.add_parser(name, help=text, description=f"{text}. {when}")
    below = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, said in actions.items():
        parser = below.add_parser(action, help=said, description=said)
        add_flags(parser, {"--data": DATA})
        _add_arguments(parser, arguments.get(action, {}))


def _add_arguments(command: argparse.ArgumentParser, arguments: _Arguments) -> None:
    for flag, options in arguments.items():
        command.add_argument(flag, **options)


class _Parser(argparse.ArgumentParser):
    """The error for an unknown word shows the command's usage and the nearest word that the command knows."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._flags: list[str] = []
        self._below: Any = None
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> Any:
        added = super().add_argument(*args, **options)
        if added.help != argparse.SUPPRESS:
            self._flags += added.option_strings
        return added

    def add_subparsers(self, **options: Any) -> Any:
        self._below = super().add_subparsers(**options)
        return self._below

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._below is not None:
            args = sys.argv[1:] if args is None else list(args)
            if args[:1] == ["help"]:
                args = [*args[1:], "--help"]
            self._check_command(args)
        found, unknown = super().parse_known_args(args, namespace)
        # Those of a command come to nobody else.
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        return found, unknown

    def _check_command(self, words: list[str]) -> None:
        # Flags before a command take no value.
        word = next((one for one in words if not one.startswith("-")), None)
        kind = self._below.metavar.lower()
        if word is None and not words:
            choices = f"choose one of {', '.join(self._below.choices)}"
            begin = f"begin with: {_EXAMPLES['up']} (--help lists all)" if kind == "command" else choices
            self.error(f"the {kind} is missing; {begin}")
        wrong = [one for one in words if not any(flag.startswith(one.partition("=")[0]) for flag in self._flags)]
        if word is None and wrong:
            self.error(f"unrecognized arguments: {' '.join(wrong)}{self._advice(wrong)}")
        if word is not None and word not in self._below.choices:
            near = advice(word, self._below.choices) or f"; choose one of {', '.join(self._below.choices)}"
            self.error(f"there is no {kind} {word!r}{near}")

    def _advice(self, unknown: list[str]) -> str:
        flags = [one.partition("=")[0] for one in unknown if one.startswith("--")]
        for flag in flags:
            if flag in UP_FLAGS:
                return f"; 'antiphon up' takes {flag} (without Envoy: --door http)"
            if near := advice(flag, self._flags):
                return near
        return ""


def import_command(name: str) -> Any:
    """The module of a command. A command with parts of its own has them in a folder."""
    module = name.replace("-", "_")
    return import_module(f"antiphon.commands.{module}{'.command' if name in ('admin', 'doctor') else ''}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parsed = make_parser().parse_args(arguments)
    module = import_command(parsed.command)
    # What is imported stays: the collector need never look at it, not even once at the end of the start.
    gc.freeze()
    gc.enable()
    try:
        status = module.run(parsed)
        sys.stdout.flush()
    except ConfigError as error:
        print(f"antiphon: {error}", file=sys.stderr)
        return 2
    except AntiphonError as error:
        print(f"antiphon: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough. What is still held back must not fail when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return int(status)
