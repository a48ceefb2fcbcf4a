"""Defines the arguments of each command that are not settings: names, defaults, examples and help texts.

This module also has the whole help of `try`, `run` and the small chat servers. `command_line.py` has the parser, and
the help of the other commands. `flags.py` has the flags of settings.

Invariant: this module imports no command and no server, so that `antiphon --help` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, NamedTuple, TypedDict


class ArgumentOptions(TypedDict, total=False):
    """The options of one argument, as `argparse.ArgumentParser.add_argument` takes them."""

    action: str
    choices: Iterable[str] | None
    const: object
    default: object
    dest: str
    help: str
    metavar: str | None
    required: bool
    type: Callable[[str], object]


Arguments = dict[str, ArgumentOptions]
"""The arguments of a command. A key is the argument's name or its flags, for example `-v, --verbose`."""


class ChatServer(NamedTuple):
    """A command that serves a chat server: its help, examples, further text, and arguments."""

    text: str
    examples: tuple[str, ...]
    more: str
    arguments: Arguments


_HIDDEN: ArgumentOptions = {"help": argparse.SUPPRESS}
_CHILD: Arguments = {"--parent-pipe": {"type": int, **_HIDDEN}, "--ask-upstreams": {"action": "store_true", **_HIDDEN}}
OF_COMMANDS: dict[str, Arguments] = {
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
            "help": "environment variable with a client's key, for upstreams with 'auth: passthrough'",
        },
        "--images": {"action": "store_true", "help": "also check whether the model accepts images"},
        "--json": {"action": "store_true", "help": "print the results of the checks as JSON"},
    },
    "tail": {
        "--lines": {
            "type": int,
            "default": 10,
            "metavar": "N",
            "help": "first print the newest N requests; default: 10",
        },
        "--no-follow": {"action": "store_true", "help": "print the newest requests and exit"},
        "--failed": {"action": "store_true", "help": "only requests with an error"},
        "--model": {"help": "only requests for this model"},
        "--owner": {"help": "only requests of this owner: a name of owner.keys, or an owner id"},
        "--code": {"help": "only requests that failed with this code"},
        "--json": {"action": "store_true", "help": "print each request as one line of JSON"},
    },
    "show": {
        "id": {
            "metavar": "ID",
            "help": "id of a response, request id, or id of an entry of the journal; the first 16 digits are enough, "
            "or the first 16 characters of a UUID",
        },
        "-v, --verbose": {
            "action": "store_true",
            "help": "also print the recorded requests and answers of the client and of the model server",
        },
        "--json": {"action": "store_true", "help": "print the request and its recorded contents as JSON"},
    },
    "config": {
        "--sources": {"action": "store_true", "help": "list each setting with its value and its source"},
        "--changed": {"action": "store_true", "help": "list only settings that differ from their defaults"},
        "--json": {"action": "store_true", "help": "print JSON instead of YAML or a table"},
        "--schema": {"action": "store_true", "help": "print the JSON Schema of settings files instead of the settings"},
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
            "help": "the Gateway to extend, with --for envoy-gateway or istio; default: default/antiphon",
        },
        "--hostname": {
            "action": "append",
            "metavar": "NAME",
            "help": "a host name that Antiphon serves (may be repeated), with --for envoy-gateway or istio; "
            "default: every host",
        },
        "--own-gateway": {
            "action": "store_true",
            "help": "also print the Gateway and route every path to it; only for a Gateway that no other service uses",
        },
        "--envoy-proxy": {
            "metavar": "NAME",
            "help": "the EnvoyProxy that the Gateway already uses, with --for envoy-gateway",
        },
        "--remove": {"action": "store_true", "help": "print the commands that remove Antiphon from the Gateway"},
        "--listener": {
            "metavar": "NAME,...",
            "help": "the Gateway's listeners that serve Antiphon, with --for envoy-gateway; default: http",
        },
        "--gateway-port": {"metavar": "PORT", "help": "port of the Gateway's listener, with --for istio; default: 80"},
        "--into": {
            "type": Path,
            "metavar": "FILE",
            "help": "with --for snippet: merge the parts into the Envoy configuration in FILE, and print the result",
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
_YES: Arguments = {"--yes": {"action": "store_true", "help": "make the change instead of only printing it"}}
_OWNER: Arguments = {
    "--owner": {"help": "the owner's name, or the owner id as 'admin owners' prints it"},
    "--token-env": {"metavar": "NAME", "help": "environment variable with the owner's bearer token"},
}
_JSON_KEY: Arguments = {"--json": {"action": "store_true", "help": "print the key and its token as one JSON object"}}
_EXPIRES = "time for which the new key is valid (90d, 12h); default: "
OF_ADMIN: dict[str, Arguments] = {
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
            "help": "environment variable with an existing token, which becomes the key's token instead of a new one",
        },
        "--name": {"default": "", "help": "a label for the key, for example the device"},
        "--team": {"default": "", "help": "the team of the owner"},
        "--model": {"action": "append", "metavar": "GLOB", "help": "a model that the key may use (repeatable)"},
        "--tool": {
            "action": "append",
            "metavar": "GLOB",
            "help": "a type of tool that requests with the key may declare (repeatable)",
        },
        "--expires": {"metavar": "TIME", "help": _EXPIRES + "no end"},
        **_JSON_KEY,
    },
    "keys list": {
        "--owner": {"default": "", "metavar": "NAME", "help": "list only the keys of this owner"},
        "--all": {"action": "store_true", "help": "also list expired and revoked keys"},
        "--json": {"action": "store_true", "help": "print one JSON object per line"},
    },
    "keys rotate": {
        "key": {"metavar": "KEY", "help": "the id of the key, as 'admin keys list' prints it"},
        "--overlap": {
            "default": "24h",
            "metavar": "TIME",
            "help": "time for which the former key stays valid; default: %(default)s",
        },
        "--expires": {"metavar": "TIME", "help": _EXPIRES + "the same lifetime as the former key had"},
        **_JSON_KEY,
    },
    "keys revoke": {"key": {"metavar": "KEY", "help": "the id of the key, as 'admin keys list' prints it"}},
    "deployment-keys": {
        "--accept": {"action": "store_true", "help": "record the keys in these settings in the database"}
    },
    "backup": {
        "--to": {
            "type": Path,
            "metavar": "FILE",
            "dest": "target",
            "required": True,
            "help": "the archive file to write",
        },
        "--without-keys": {"action": "store_true", "help": "leave the keys of the data folder out of the archive"},
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
            "help": "columns by which the command groups: day, month, owner, team, model, upstream, or several with "
            "commas; a team is the owner's team today, also for past days",
        },
        "--since": {"default": "", "metavar": "YYYY-MM-DD", "help": "the first day to list (UTC)"},
        "--until": {"default": "", "metavar": "YYYY-MM-DD", "help": "the last day to list (UTC)"},
        "--csv": {"action": "store_true", "help": "print CSV for a spreadsheet, always with the same columns"},
        "--json": {"action": "store_true", "help": "print one JSON object per line"},
        "--forget-before": {"metavar": "YYYY-MM-DD", "help": "delete the stored sums of all owners before this day"},
        **_YES,
    },
    "audit": {
        "--since": {"default": "", "metavar": "YYYY-MM-DD", "help": "the first day to list (UTC)"},
        "--owner": {"default": "", "metavar": "NAME", "help": "list only the rows that concern this owner"},
        "--changes": {"action": "store_true", "help": "list only changes, without the reads of operators"},
        "--limit": {"type": int, "default": 100, "help": "the maximum number of rows to list; default: %(default)s"},
        "--json": {"action": "store_true", "help": "print one JSON object per line"},
    },
    "move-owner": {
        "--from": {
            "metavar": "OWNER",
            "dest": "owner",
            "help": "the former owner's name, or its id as 'admin owners' prints it",
        },
        "--token-env": _OWNER["--token-env"],
        "--to": {
            "metavar": "NAME",
            "dest": "target",
            "required": True,
            "help": "the name of the new owner, or the whole owner id (b:…, h:…, j:…, n:…)",
        },
        **_YES,
    },
    "delete-owner": {**_OWNER, **_YES},
    "new-keys": _YES,
}
_DATABASE: Arguments = {
    "--database": {
        "metavar": "NAME",
        "help": "name of a database, as 'migrate status' lists it; default: the first in that list",
    }
}
OF_MIGRATE: dict[str, Arguments] = {
    "up": {
        "--seconds": {
            "type": float,
            "default": 600.0,
            "help": "maximum number of seconds for one migration step; default: %(default)g",
        }
    },
    "create": {
        "name": {"metavar": "NAME", "help": "the migration step's name: small letters, digits and _"},
        **_DATABASE,
    },
    "down": {**_DATABASE, **_YES},
}
_GATEWAY: Arguments = {
    "--url": {"metavar": "URL", "help": "base URL of the gateway; default: the address in the setting 'listen'"},
    "--model": {"help": "the model; default: the first that the gateway lists"},
    "--key-env": {"metavar": "NAME", "help": "environment variable with the client's key; default: no key"},
}
TRY_EXAMPLES = (
    'antiphon try "Name a river."',
    'antiphon try --tool web_search -v "What happened today?"',
    "antiphon try --instructions 'Summarize.' - < report.txt",
)
TRY_ARGUMENTS: Arguments = {
    "text": {"metavar": "TEXT", "help": "the input; - reads it from standard input"},
    **_GATEWAY,
    "--config": {"type": Path, "metavar": "FILE", "help": "YAML file of settings, for the gateway's address"},
    "--instructions": {"metavar": "TEXT", "help": "instructions for the model"},
    "--previous": {
        "metavar": "ID",
        "help": "id of the response to continue; 'antiphon try' prints the id in its last line",
    },
    "--tool": {
        "action": "append",
        "metavar": "TYPE",
        "help": "a tool that the model may use: its type (web_search), or a whole tool as JSON (repeatable)",
    },
    "-v, --verbose": {"action": "store_true", "help": "print every event on one line instead of the answer's text"},
    "--json": {"action": "store_true", "help": "print every event as one line of JSON"},
}
RUN_EXAMPLES = (
    "antiphon run codex --upstream http://127.0.0.1:11434/v1 --model qwen3-coder",
    'antiphon run codex --model qwen3-coder -- exec "Say what this project does."',
    "antiphon run opencode --url http://gateway:8080/v1 --key-env MY_KEY",
)
RUN_MORE = """\
The words after -- are the client's own arguments. The command uses a gateway that already runs at the address in the
setting 'listen'. Without such a gateway, the command starts one, and stops it when the client ends. The client gets a
temporary configuration, so the user's own configuration of the client does not change. The command exits with the
client's exit status."""
RUN_ARGUMENTS: Arguments = {
    "client": {"choices": ("codex", "opencode"), "help": "the client to run"},
    **_GATEWAY,
    "--url": {"metavar": "URL", "help": "base URL of a running gateway; default: the address in the setting 'listen'"},
}


_DEMO: Final = """\
The models are demo and demo-reasoner. The first row that matches the last message applies:
  "fail" or "error 429"                  the server answers with an error; "error 429" chooses the status 429
  "break"                                the server cuts the connection
  a word of a tool's name                the model calls the tool (Plot 3, 5 and 8 with the code interpreter.)
  a question, if the request has 1 tool  the model calls the tool
  "count to 20"                          the model counts
  "instructions"                         the model repeats the instructions
  "before"                               the model repeats your earlier messages
  any other text                         the model repeats the message
If the message contains "think", the model sends reasoning first."""
_RECORD: Final = """\
The file has one JSON object per line. The file contains no request headers, no URL of the upstream and no key. The
command removes the keys of requests, and the values of variables whose name ends in KEY, TOKEN, SECRET or PASSWORD.
The file contains the conversations in plain text. The guide: docs/how-to/record-and-replay.md."""
_REPLAY: Final = """\
A request matches an entry with the same method, path and JSON body, in any order of keys. A request that
matches no entry gets status 404, and the error names the first difference.
The guide: docs/how-to/record-and-replay.md."""


def _listen(default: str) -> Arguments:
    text = "address to listen on (port 0: any free port); default: %(default)s"
    return {"--listen": {"default": default, "metavar": "HOST:PORT", "help": text}}


_JSON: Final[Arguments] = {"--json": {"action": "store_true", "help": "print the line with the address as JSON"}}
CHAT_SERVERS: Final[dict[str, ChatServer]] = {
    "demo-upstream": ChatServer(
        "start a small scripted model server, to try things out",
        ("antiphon demo-upstream", "antiphon up --door http --upstream http://127.0.0.1:8081/v1"),
        _DEMO,
        _listen("127.0.0.1:8081"),
    ),
    "record": ChatServer(
        "start a proxy that records the answers of a model server to a file",
        (
            "antiphon record --to agent.jsonl --upstream http://127.0.0.1:11434/v1",
            "antiphon up --door http --upstream http://127.0.0.1:8082/v1",
        ),
        _RECORD,
        {
            "--to": {
                "type": Path,
                "metavar": "FILE",
                "dest": "target",
                "required": True,
                "help": "the file for the recording; it must not exist, unless --append is given",
            },
            "--append": {"action": "store_true", "help": "add entries to a file that exists"},
            "--upstream": {
                "default": "http://127.0.0.1:11434/v1",
                "metavar": "URL",
                "help": "base URL of the model server; default: %(default)s",
            },
            **_listen("127.0.0.1:8082"),
            "--key-env": {
                "metavar": "NAME",
                "help": "environment variable with the model server's key, which replaces the client's key",
            },
            "--secret-env": {
                "action": "append",
                "default": [],
                "metavar": "NAME",
                "help": "environment variable whose value is removed from the recording (may be repeated)",
            },
            **_JSON,
        },
    ),
    "replay": ChatServer(
        "serve the answers of a recording as a model server, without a model",
        ("antiphon replay agent.jsonl", "antiphon replay agent.jsonl --speed recorded --loop"),
        _REPLAY,
        {
            "file": {"type": Path, "metavar": "FILE", "help": "a file that 'antiphon record' wrote"},
            **_listen("127.0.0.1:8081"),
            "--speed": {
                "choices": ("recorded", "full"),
                "default": "full",
                "help": "send the chunks at their recorded times, or immediately; default: %(default)s",
            },
            "--loop": {
                "action": "store_true",
                "help": "after the last recorded answer to a request, begin again with the first; default: "
                "repeat the last answer",
            },
            **_JSON,
        },
    ),
}
