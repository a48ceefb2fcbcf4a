"""The command line: commands, actions, flags and their help, as one argparse parser.

Lives here: the commands in the order of their use, and their help. Not here: running a command (`cli.py`), the setting
of each flag (`flags.py`), the parser's class (`suggesting_parser.py`). The module of each command has its code.

Invariant: the parser imports no command, so that `antiphon --help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from antiphon import __version__, compiled
from antiphon.commands import health
from antiphon.commands.chat_server_arguments import CHAT_SERVERS
from antiphon.commands.client_flags import RUN_ARGUMENTS, RUN_EXAMPLES, RUN_MORE, TRY_ARGUMENTS, TRY_EXAMPLES
from antiphon.commands.flags import DATA, OF_ALL, OF_EXTPROC, OF_SERVE, OF_UP, FlagGroup, add_flags
from antiphon.commands.suggesting_parser import Parser

_COMMANDS: dict[str, tuple[str, tuple[FlagGroup, ...]]] = {
    "up": ("start the gateway: sidecar processes and Envoy, or the HTTP server", OF_UP),
    "doctor": ("check this machine, Envoy and the upstreams, and print what to change", OF_ALL),
    "config": ("print the effective settings, with secrets redacted", OF_ALL),
    "envoy-config": ("print a configuration of Envoy, or the parts that an existing Envoy needs", OF_ALL),
    "extproc": ("start one sidecar: ext_proc over gRPC, and its HTTP port", OF_EXTPROC),
    "serve": ("start one process of the HTTP server", OF_SERVE),
    "tail": ("print each request when it ends, from the journal of the console", ({"--data": DATA},)),
    "show": ("print one request: its failure, its steps and both sides of the translation", ({"--data": DATA},)),
}
_EXAMPLES = {
    "up": ("antiphon up --upstream http://127.0.0.1:11434/v1", "antiphon up --door http --config settings.yaml"),
    "doctor": ("antiphon doctor --upstream http://127.0.0.1:11434/v1 --model llama3.2",),
    "config": ("antiphon config --config settings.yaml", "antiphon config --sources --changed"),
    "envoy-config": (
        "antiphon envoy-config --upstream http://vllm:8000/v1 > envoy.yaml",
        "antiphon envoy-config --for snippet --into my-envoy.yaml",
    ),
    "extproc": ("antiphon extproc --data /run/antiphon --upstream http://vllm:8000/v1",),
    "serve": ("antiphon serve --upstream https://api.groq.com/openai/v1 --api-key-env GROQ_API_KEY",),
    "tail": ("antiphon tail", "antiphon tail --failed --owner anna --json"),
    "show": ("antiphon show resp_0123456789", "antiphon show resp_0123456789 -v"),
    "health": ("antiphon health",),
    "version": ("antiphon version --json",),
    "completion": ("antiphon completion bash > ~/.local/share/bash-completion/completions/antiphon",),
    "admin": (
        "antiphon admin owners",
        "antiphon admin export --token-env ANNA > anna.jsonl",
        "antiphon admin keys create --owner anna --expires 90d",
        "antiphon admin usage --by owner,model --since 2026-11-01",
        "antiphon admin backup --to backup.tar",
    ),
    "migrate": ("antiphon migrate status", "antiphon migrate up"),
}
_MORE = "Every other setting goes into the file of --config or an ANTIPHON_… variable: docs/reference/configuration.md."
_BEGIN = """\
Antiphon gives a Chat Completions server the OpenAI Responses API. Begin with one of:

  antiphon up --upstream http://127.0.0.1:11434/v1       start the gateway in front of your model server
  antiphon doctor --upstream http://127.0.0.1:11434/v1   check the installation and the model server
  antiphon demo-upstream                                 start a scripted model server to try things out
  antiphon try "Name a river."                           send a request to the running gateway
  antiphon tail                                          watch the requests (with up --console)
  antiphon --help                                        list all commands
"""
"""The text that `antiphon` prints if no command is given."""
_ADMIN = {
    "Owners": {
        "owners": "list the owners, and the number of stored objects of each kind",
        "quotas": "print how much of each quota is used in its current period",
        "usage": "print the tokens and the cost of model calls by owner, model, upstream and day",
        "export": "write all stored data of one owner to standard output, one JSON object per line",
        "move-owner": "give all stored data of one owner to another owner; without --yes only count it",
        "delete-owner": "delete all stored data of one owner; without --yes only count it",
    },
    "Upkeep": {
        "audit": "list the changes that operators made to keys and stored data, the newest first",
        "purge": "delete data older than retention.* allows, and expired files",
        "vacuum": "return the space of deleted rows to the file system",
    },
    "Backup and move": {
        "backup": "write all stored data into one archive, while servers run",
        "restore": "create a new data folder from an archive of backup",
        "move": "copy a data folder into a PostgreSQL database; a second run continues an interrupted move",
    },
    "Client keys": {
        "keys create": "create a key for a named owner, and print its token once",
        "keys list": "list the keys, without their tokens",
        "keys rotate": "create the successor of a key; the former key stays valid for a while",
        "keys revoke": "revoke a key immediately",
    },
    "Keys of the deployment": {
        "deployment-keys": "compare the keys in these settings with the keys that the shared database records",
        "new-keys": "replace lost keys of the data folder; without --yes only print what becomes unreadable",
    },
}
_MIGRATE = {
    "Schema": {
        "status": "list the steps of the schema, and the builds that can serve; exit 1 if a step is missing",
        "up": "apply the missing steps",
        "down": "undo the last step; without --yes only print it",
    },
    "For developers": {"create": "create a new empty step in the source tree"},
}
# The arguments of a command that are not settings.
_Arguments = dict[str, dict[str, Any]]
_HIDDEN = {"help": argparse.SUPPRESS}
_SET = "store_true"
_CHILD: _Arguments = {"--parent-pipe": {"type": int, **_HIDDEN}, "--ask-upstreams": {"action": _SET, **_HIDDEN}}
_OF_COMMANDS: dict[str, _Arguments] = {
    "extproc": {"--worker": {"type": int, "default": 0, **_HIDDEN}, **_CHILD},
    "serve": {
        **_CHILD,
        "--sockets": {"default": "", **_HIDDEN},
        "--console-sockets": {"default": "", **_HIDDEN},
        "--private-port": _HIDDEN,
    },
    "doctor": {
        "--model": {"help": "the model to probe; default: the first in the server's list"},
        "--key-env": {
            "metavar": "NAME",
            "help": "environment variable with a client's key, for upstreams with auth passthrough",
        },
        "--images": {"action": _SET, "help": "also check whether the model accepts images"},
        "--json": {"action": _SET, "help": "print the findings as JSON"},
    },
    "tail": {
        "--lines": {"type": int, "default": 10, "metavar": "N", "help": "first print the newest N; default: 10"},
        "--no-follow": {"action": _SET, "help": "end after the newest requests"},
        "--failed": {"action": _SET, "help": "only requests with an error"},
        "--model": {"help": "only requests for this model"},
        "--owner": {"help": "only requests of this owner: a name of owner.keys, or an owner id"},
        "--code": {"help": "only requests that failed with this code"},
        "--json": {"action": _SET, "help": "print each request as one line of JSON"},
    },
    "show": {
        "id": {"metavar": "ID", "help": "id of a response, request id, or id of an entry of the journal"},
        "-v, --verbose": {"action": _SET, "help": "also print the recorded contents of both sides"},
        "--json": {"action": _SET, "help": "print the request and its recorded contents as JSON"},
    },
    "config": {
        "--sources": {"action": _SET, "help": "list each setting with its value and its source"},
        "--changed": {"action": _SET, "help": "list only settings that differ from their defaults"},
        "--json": {"action": _SET, "help": "print JSON instead of YAML or a table"},
        "--schema": {"action": _SET, "help": "print the JSON Schema of settings files instead of the settings"},
    },
    "envoy-config": {
        "--for": {
            "dest": "form",
            "metavar": "FORM",
            "default": "bootstrap",
            "help": "bootstrap: a whole configuration; snippet: only the parts that an existing Envoy needs; "
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
            "help": "print the Gateway too, and route every path to Antiphon, if no other service uses the Gateway",
        },
        "--envoy-proxy": {
            "metavar": "NAME",
            "help": "the EnvoyProxy that the Gateway already uses, with --for envoy-gateway",
        },
        "--remove": {"action": _SET, "help": "print the commands that remove Antiphon from the Gateway"},
        "--listener": {
            "metavar": "NAME,...",
            "help": "the Gateway's listeners, with --for envoy-gateway; default: http",
        },
        "--gateway-port": {"metavar": "PORT", "help": "port of the Gateway's listener, with --for istio; default: 80"},
        "--into": {
            "type": Path,
            "metavar": "FILE",
            "help": "with --for snippet: print this Envoy configuration with the parts merged in",
        },
        "--into-listener": {"metavar": "NAME", "help": "the listener to extend in the file of --into"},
        "--into-virtual-host": {"metavar": "NAME", "help": "the virtual host to extend in the file of --into"},
        "--snippet": {"dest": "form", "action": "store_const", "const": "snippet", **_HIDDEN},
        "--envoy-version": {
            "metavar": "1.38",
            "help": "the version of Envoy; default: the version of the Envoy binary that 'up' would start",
        },
    },
}
_YES: _Arguments = {"--yes": {"action": _SET, "help": "make the change instead of only printing it"}}
_OWNER: _Arguments = {
    "--owner": {"help": "the owner, as 'admin owners' prints it"},
    "--token-env": {"metavar": "NAME", "help": "environment variable with the owner's bearer token"},
}
_EXPIRES: _Arguments = {
    "--expires": {"metavar": "TIME", "help": "time for which the new key is valid (90d, 12h); default: no end"},
    "--json": {"action": _SET, "help": "print the key and its token as one JSON object"},
}
_OF_ADMIN: dict[str, _Arguments] = {
    "export": {
        **_OWNER,
        "--files": {"type": Path, "metavar": "FOLDER", "help": "also write the contents of files to this folder"},
    },
    "move": {
        "--from": {
            "metavar": "URL",
            "dest": "source",
            "help": "the source database, sqlite:/FOLDER; default: the data folder",
        },
        "--to": {"metavar": "URL", "dest": "target", "help": "the target database, postgresql://…; default: state.url"},
    },
    "keys create": {
        "--owner": {
            "required": True,
            "metavar": "NAME",
            "help": "the name of the owner, whose stored data the key sees",
        },
        "--from-env": {
            "metavar": "NAME",
            "help": "environment variable with an existing token, which the key uses instead of a new token",
        },
        "--name": {"default": "", "help": "a label for the key, for example the device"},
        "--team": {"default": "", "help": "the team of the owner"},
        "--model": {"action": "append", "metavar": "GLOB", "help": "a model that the key may use (repeatable)"},
        "--tool": {
            "action": "append",
            "metavar": "GLOB",
            "help": "a type of tool that requests with the key may declare (repeatable)",
        },
        **_EXPIRES,
    },
    "keys list": {
        "--owner": {"default": "", "metavar": "NAME", "help": "list only the keys of this owner"},
        "--all": {"action": _SET, "help": "also list expired and revoked keys"},
        "--json": {"action": _SET, "help": "print one JSON object per line"},
    },
    "keys rotate": {
        "key": {"metavar": "KEY", "help": "the id of the key, as 'admin keys list' prints it"},
        "--overlap": {
            "default": "24h",
            "metavar": "TIME",
            "help": "time for which the former key stays valid; default: %(default)s",
        },
        **_EXPIRES,
    },
    "keys revoke": {"key": {"metavar": "KEY", "help": "the id of the key, as 'admin keys list' prints it"}},
    "deployment-keys": {"--accept": {"action": _SET, "help": "record the keys in these settings in the database"}},
    "backup": {
        "--to": {
            "type": Path,
            "metavar": "FILE",
            "dest": "target",
            "required": True,
            "help": "the archive file to write",
        },
        "--without-keys": {"action": _SET, "help": "write no keys of the data folder into the archive"},
    },
    "restore": {
        "--from": {
            "type": Path,
            "metavar": "FILE",
            "dest": "source",
            "required": True,
            "help": "the archive file to read",
        }
    },
    "usage": {
        **_OWNER,
        "--by": {
            "default": "model",
            "help": "columns by which the command groups: day, owner, model, upstream, or several with commas",
        },
        "--since": {"default": "", "metavar": "YYYY-MM-DD", "help": "the first day (UTC)"},
        "--until": {"default": "", "metavar": "YYYY-MM-DD", "help": "the last day (UTC)"},
        "--json": {"action": _SET, "help": "print one JSON object per line"},
        "--forget-before": {"metavar": "YYYY-MM-DD", "help": "delete the stored sums of days before this day"},
        **_YES,
    },
    "audit": {
        "--since": {"default": "", "metavar": "YYYY-MM-DD", "help": "the first day (UTC)"},
        "--owner": {"default": "", "metavar": "NAME", "help": "list only the changes that concern this owner"},
        "--limit": {"type": int, "default": 100, "help": "the maximum number of rows to list; default: %(default)s"},
        "--json": {"action": _SET, "help": "print one JSON object per line"},
    },
    "move-owner": {
        "--from": {"metavar": "OWNER", "dest": "owner", "help": "the former owner, as 'admin owners' prints it"},
        "--token-env": _OWNER["--token-env"],
        "--to": {
            "metavar": "NAME",
            "dest": "target",
            "required": True,
            "help": "the name of the new owner, or the whole owner id (h:…, b:…)",
        },
        **_YES,
    },
    "delete-owner": {**_OWNER, **_YES},
    "new-keys": _YES,
}
_DATABASE: _Arguments = {
    "--database": {"metavar": "NAME", "help": "a database that 'migrate status' lists; default: the first"}
}
_OF_MIGRATE: dict[str, _Arguments] = {
    "up": {
        "--seconds": {
            "type": float,
            "default": 600.0,
            "help": "maximum number of seconds for one step of the schema; default: %(default)g",
        }
    },
    "create": {"name": {"metavar": "NAME", "help": "the step's name: small letters, digits and _"}, **_DATABASE},
    "down": {**_DATABASE, **_YES},
}


def _version() -> str:
    return f"antiphon {__version__}" + (" (compiled)" if compiled() else "")


def _help(text: str, examples: tuple[str, ...], more: str = "") -> dict[str, Any]:
    """The keyword arguments for a command's parser: its description, examples and further text."""
    title = "example" if len(examples) == 1 else "examples"
    shown = "\n".join(f"  {one}" for one in examples)
    return {
        "description": f"{text[:1].upper()}{text[1:]}.",
        "epilog": f"{title}:\n{shown}" + (f"\n\n{more}" if more else ""),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def make_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    parser = Parser(
        prog="antiphon",
        description="The OpenAI Responses API in front of any Chat Completions server.",
        epilog=f"start with: {_EXAMPLES['up'][0]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.without_words = _BEGIN
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, groups) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, **_help(text, _EXAMPLES[name], _MORE))
        _add_arguments(command, _OF_COMMANDS.get(name, {}))
        add_flags(command.settings_group("settings"), *groups)
    for name, server in CHAT_SERVERS.items():
        command = commands.add_parser(name, help=server.text, **_help(server.text, server.examples, server.more))
        _add_arguments(command, server.arguments)
    text = "send one request to a running gateway, and print the answer as it arrives"
    _add_arguments(commands.add_parser("try", help=text, **_help(text, TRY_EXAMPLES)), TRY_ARGUMENTS)
    text = "run a client program, such as Codex, on a gateway; start the gateway if none runs"
    run = commands.add_parser("run", help=text, **_help(text, RUN_EXAMPLES, RUN_MORE))
    run.passes_on = True
    _add_arguments(run, RUN_ARGUMENTS)
    add_flags(run.settings_group("settings"), *OF_UP)
    _add_actions(
        commands,
        "admin",
        "list, export, delete, back up and move stored data, while servers run or while no server runs",
        _ADMIN,
        _OF_ADMIN,
    )
    _add_actions(
        commands, "migrate", "manage the schema of the databases, also while servers run", _MIGRATE, _OF_MIGRATE
    )
    text = "exit with status 0 if a running instance answers (for container health checks)"
    health.add_arguments(commands.add_parser("health", help=text, **_help(text, _EXAMPLES["health"])))
    text = "print the version of Antiphon, Python and the platform"
    version = commands.add_parser("version", help=text, **_help(text, _EXAMPLES["version"]))
    version.add_argument("--json", action="store_true", help="print one JSON object")
    text = "print a completion script for a shell"
    completion = commands.add_parser("completion", help=text, **_help(text, _EXAMPLES["completion"]))
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below `parser`, by name: all commands, or the actions of a command."""
    below = parser.below if isinstance(parser, Parser) else None
    return dict(below.choices) if below is not None else {}


def _add_actions(
    commands: Any, name: str, text: str, groups: Mapping[str, dict[str, str]], arguments: dict[str, _Arguments]
) -> None:
    """Add a command with actions. The help of the command lists the actions in groups, which argparse does not support
    itself."""
    described = _help(text, _EXAMPLES[name])
    width = max(len(action) for actions in groups.values() for action in actions)
    for title, actions in groups.items():
        shown = "\n".join(f"  {action:{width}}  {said}" for action, said in actions.items())
        described["description"] += f"\n\n{title}:\n{shown}"
    command = commands.add_parser(name, help=text, **described)
    below = command.add_subparsers(dest="action", required=True, metavar="ACTION", help="one of the above")
    verbs: dict[str, Any] = {}
    for actions in groups.values():
        for action, said in actions.items():
            word, _, verb = action.partition(" ")
            if verb and word not in verbs:
                parser = below.add_parser(word, description=f"Creates, lists and ends client {word}.")
                verbs[word] = parser.add_subparsers(dest="verb", required=True, metavar="ACTION")
            described = {"description": f"{said[:1].upper()}{said[1:]}."}
            parser = (
                verbs[word].add_parser(verb, help=said, **described) if verb else below.add_parser(word, **described)
            )
            of_action = dict(arguments.get(action, {}))
            if action != "export":
                # An export is JSON anyway.
                of_action.setdefault("--json", {"action": _SET, "help": "print the result as JSON"})
            if "--token-env" in of_action:
                owner = parser.add_mutually_exclusive_group(required=action != "usage")
                for flag in ("--from" if action == "move-owner" else "--owner", "--token-env"):
                    owner.add_argument(flag, **of_action.pop(flag))
            _add_arguments(parser, of_action)
            add_flags(parser.settings_group("settings"), {"--data": DATA})


def _add_arguments(command: argparse.ArgumentParser, arguments: _Arguments) -> None:
    for flag, options in arguments.items():
        command.add_argument(*flag.split(", "), **options)
