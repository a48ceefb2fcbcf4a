"""Parses the command line: the commands, their actions and their help, as one argparse parser.

This module lists the commands in the order of their use. The error message for an unknown word suggests the nearest
known word. This module also runs the commands `antiphon version` and `antiphon completion`. Every other command has a
separate module, which `entry.py` imports and runs. `command_arguments.py` has the arguments of each command, and
`flags.py` has the setting of each flag.

Invariants: of the commands, the parser imports only `health`, so that `antiphon --help` is quick. An error message
never repeats an API key that a user gave in place of another argument.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn, Protocol, TypedDict, Unpack

from antiphon import __version__, compiled
from antiphon.commands import health
from antiphon.commands.command_arguments import (
    CHAT_SERVERS,
    OF_ADMIN,
    OF_COMMANDS,
    OF_MIGRATE,
    RUN_ARGUMENTS,
    RUN_EXAMPLES,
    RUN_MORE,
    TRY_ARGUMENTS,
    TRY_EXAMPLES,
    ArgumentOptions,
    Arguments,
)
from antiphon.commands.flags import (
    DATA,
    OF_ALL,
    OF_EXTPROC,
    OF_SERVE,
    OF_UP,
    UP_FLAGS,
    FlagGroup,
    TakesArguments,
    add_flags,
)
from antiphon.config.problems import advice, without_keys

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
    "show": ("antiphon show resp_0123456789abcdef", "antiphon show resp_0123456789abcdef -v"),
    "health": ("antiphon health",),
    "version": ("antiphon version --json",),
    "completion": (
        "antiphon completion bash > ~/.local/share/bash-completion/completions/antiphon",
        "antiphon completion fish > ~/.config/fish/completions/antiphon.fish",
    ),
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
        "quotas": "print the use of each quota that was used in its current period",
        "usage": "print the tokens and the cost of model calls by owner, team, model, upstream, day or month; "
        "Antiphon does not count forwarded calls such as Chat Completions",
        "export": "write all stored data of one owner to standard output, one JSON object per line",
        "move-owner": "give all stored data of one owner to another owner; without --yes only count the data",
        "delete-owner": "delete all stored data of one owner; without --yes only count the data",
    },
    "Upkeep": {
        "audit": "list the changes and the reads of operators, the newest first",
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
        "keys rotate": "replace a key by a new one; the former key stays valid for a while",
        "keys revoke": "revoke a key immediately",
    },
    "Keys of the deployment": {
        "deployment-keys": "compare the keys in these settings with the keys that the shared database records",
        "new-keys": "replace lost keys of the data folder; without --yes only print what becomes unreadable",
    },
}
_MIGRATE = {
    "Schema": {
        "status": "list the migration steps, and the versions that can use the database; exit 1 if a step is missing",
        "up": "apply the missing migration steps",
        "down": "undo the last migration step; without --yes only print the step",
    },
    "For developers": {"create": "create an empty migration step in the source tree"},
}


class Commands(Protocol):
    """The methods of argparse's object for subcommands that this module uses."""

    @property
    def choices(self) -> Mapping[str, Parser]:
        """The parsers, by the name of their command."""

    @property
    def metavar(self) -> object:
        """The placeholder of a command in the help."""

    def add_parser(
        self,
        name: str,
        *,
        help: str = ...,
        description: str = ...,
        epilog: str = ...,
        formatter_class: type[argparse.HelpFormatter] = ...,
    ) -> Parser:
        """Add the parser of a command."""


class _Help(TypedDict):
    """The help of one command, as keyword arguments of `argparse.ArgumentParser`."""

    description: str
    epilog: str
    formatter_class: type[argparse.HelpFormatter]


def _help(text: str, examples: tuple[str, ...], more: str = "") -> _Help:
    """The keyword arguments for a command's parser: its description, examples and further text."""
    title = "example" if len(examples) == 1 else "examples"
    shown = "\n".join(f"  {one}" for one in examples)
    return {
        "description": f"{text[:1].upper()}{text[1:]}.",
        "epilog": f"{title}:\n{shown}" + (f"\n\n{more}" if more else ""),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


def make_parser(*, for_completion: bool = False) -> argparse.ArgumentParser:
    """Build the parser of the whole command line.

    With `for_completion` each action has a help text, because shtab leaves out actions without a help text. Without
    `for_completion` the actions have no help text: argparse would list them a second time in the help of `admin`.
    """
    parser = Parser(
        prog="antiphon",
        description="The OpenAI Responses API in front of any Chat Completions server.",
        epilog=f"start with: {_EXAMPLES['up'][0]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.without_words = _BEGIN
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_commands("command", "COMMAND")
    for name, (text, groups) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, **_help(text, _EXAMPLES[name], _MORE))
        _add_arguments(command, OF_COMMANDS.get(name, {}))
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
        "list, export, delete, back up and move stored data, while servers run or are stopped",
        _ADMIN,
        OF_ADMIN,
        listed=for_completion,
    )
    _add_actions(
        commands,
        "migrate",
        "manage the schema of the databases, also while servers run",
        _MIGRATE,
        OF_MIGRATE,
        listed=for_completion,
    )
    text = "exit with status 0 if a running instance answers (for container health checks)"
    health.add_arguments(commands.add_parser("health", help=text, **_help(text, _EXAMPLES["health"])))
    text = "print the version of Antiphon, Python and the platform"
    version = commands.add_parser("version", help=text, **_help(text, _EXAMPLES["version"]))
    version.add_argument("--json", action="store_true", help="print one JSON object")
    text = "print a completion script for a shell"
    completion = commands.add_parser("completion", help=text, **_help(text, _EXAMPLES["completion"]))
    completion.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"), help="the shell")
    return parser


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers below `parser`, by name: all commands, or the actions of a command."""
    below = parser.below if isinstance(parser, Parser) else None
    return dict(below.choices) if below is not None else {}


def _add_actions(
    commands: Commands,
    name: str,
    text: str,
    groups: Mapping[str, dict[str, str]],
    arguments: dict[str, Arguments],
    *,
    listed: bool,
) -> None:
    """Add a command with actions. The help of the command lists the actions in groups, which argparse does not support
    itself. If `listed` is True, argparse lists the actions a second time, below the groups."""
    described = _help(text, _EXAMPLES[name])
    width = max(len(action) for actions in groups.values() for action in actions)
    for title, actions in groups.items():
        shown = "\n".join(f"  {action:{width}}  {said}" for action, said in actions.items())
        described["description"] += f"\n\n{title}:\n{shown}"
    command = commands.add_parser(name, help=text, **described)
    below = command.add_commands("action", "ACTION", help="one of the above")
    verbs: dict[str, Commands] = {}
    for actions in groups.values():
        for action, said in actions.items():
            word, _, verb = action.partition(" ")
            if verb and word not in verbs:
                group = f"create, list, rotate and revoke client {word}"
                parser = _add_action(below, word, group, listed=listed)
                verbs[word] = parser.add_commands("verb", "ACTION")
            if verb:
                parser = _add_action(verbs[word], verb, said, listed=True)
            else:
                parser = _add_action(below, word, said, listed=listed)
            of_action = dict(arguments.get(action, {}))
            if action != "export":
                # The output of `export` is always JSON, so `export` needs no flag.
                of_action.setdefault("--json", {"action": "store_true", "help": "print the result as JSON"})
            if "--token-env" in of_action:
                owner = parser.one_of_flags(required=action != "usage")
                for flag in ("--from" if action == "move-owner" else "--owner", "--token-env"):
                    owner.add_argument(flag, **of_action.pop(flag))
            _add_arguments(parser, of_action)
            add_flags(parser.settings_group("settings"), {"--data": DATA})


def _add_action(below: Commands, name: str, text: str, *, listed: bool) -> Parser:
    title = f"{text[:1].upper()}{text[1:]}."
    return below.add_parser(name, help=text, description=title) if listed else below.add_parser(name, description=title)


def _add_arguments(command: argparse.ArgumentParser, arguments: Arguments) -> None:
    for flag, options in arguments.items():
        command.add_argument(*flag.split(", "), **options)


def run_version(arguments: argparse.Namespace) -> int:
    """Print the version of Antiphon, Python and the platform."""
    import json
    import platform

    python = platform.python_version()
    if arguments.json:
        told = {"version": __version__, "compiled": compiled(), "python": python, "platform": platform.platform()}
        print(json.dumps(told))
    else:
        print(f"{_version()}, Python {python}, {platform.platform()}")
    return 0


def _version() -> str:
    return f"antiphon {__version__}" + (" (compiled)" if compiled() else "")


def run_completion(arguments: argparse.Namespace) -> int:
    """Print a script that completes commands, actions and flags. `arguments.shell` is `bash`, `zsh`, `fish` or `tcsh`.

    The library shtab generates the script from the parser, so the script always matches the commands. This function
    reads no settings and starts no process, so a shell may run it at each start: `source <(antiphon completion bash)`.
    For zsh, write the output to a file `_antiphon` in a folder of `fpath`. For fish, write the output to
    `~/.config/fish/completions/antiphon.fish`.
    """
    import shtab

    print(shtab.complete(make_parser(for_completion=True), shell=arguments.shell))
    return 0


_NO_FLAG = re.compile(r"-|-\d+|-\d*\.\d+")
"""Matches a word that begins with a dash but is not a flag: standard input (`-`), or a negative number."""


def _with_type(options: Mapping[str, Any]) -> dict[str, Any]:
    """Add a type to the options of a flag with choices, so that the error for a wrong value suggests the nearest
    choice."""
    choices = options.get("choices")
    if choices is None or "type" in options:
        return dict(options)

    def one_of(value: str) -> str:
        if value not in choices:
            raise argparse.ArgumentTypeError(f"{value!r} is not one of {', '.join(choices)}{advice(value, choices)}")
        return value

    return {**options, "type": one_of}


class FlagsOf:
    """A group of flags of a parser. The group records its flags, so that the parser can detect misspelt flags."""

    def __init__(self, group: TakesArguments, flags: dict[str, bool]) -> None:
        self._group = group
        self._flags = flags

    def add_argument(self, *names: str, **options: Unpack[ArgumentOptions]) -> None:
        """See `argparse.ArgumentParser.add_argument`."""
        self._group.add_argument(*names, **_with_type(options))
        self._flags |= dict.fromkeys(names, True)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose error for an unknown word suggests the nearest known word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._unknown: list[str] = []
        self._flags: dict[str, bool] = {}
        """The flags of this parser, and whether the help shows each flag."""
        self.below: Commands | None = None
        self.without_words = ""
        """The text that the program prints if no command is given."""
        self.passes_on = False
        """Whether the words after `--` belong to another program. The parser stores these words in the attribute
        `rest`."""
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> argparse.Action:
        added = super().add_argument(*args, **_with_type(options))
        self._flags |= dict.fromkeys(added.option_strings, added.help != argparse.SUPPRESS)
        return added

    def settings_group(self, title: str) -> FlagsOf:
        """Add a titled group of flags to the help."""
        return FlagsOf(self.add_argument_group(title), self._flags)

    def one_of_flags(self, *, required: bool) -> FlagsOf:
        """Add a group of flags; a command line may have only one flag of the group."""
        return FlagsOf(self.add_mutually_exclusive_group(required=required), self._flags)

    def add_commands(self, dest: str, metavar: str, help: str | None = None) -> Commands:
        """Add commands below this parser. A command line must name one of these commands. `dest` is the attribute that
        gets the command's name, and `metavar` its placeholder in the help."""
        self.below = self.add_subparsers(dest=dest, required=True, metavar=metavar, help=help)
        return self.below

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.below is not None:
            args = sys.argv[1:] if args is None else list(args)
            if args[:1] == ["help"]:
                args = [*args[1:], "--help"]
            self._check_command(self.below, args)
        rest: list[str] = []
        if self.passes_on and args is not None and "--" in args:
            at = args.index("--")
            args, rest = args[:at], args[at + 1 :]
        if self.below is None and args is not None:
            self._unknown = [word for word in args[: args.index("--") if "--" in args else None] if self._unfit(word)]
        found, unknown = super().parse_known_args(args, namespace)
        self._unknown = []
        if self.passes_on:
            found.rest = rest
        # A command's parser gets all words after the command, so this parser must report the unknown words.
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        # A misspelt flag often causes another error: the flag that the user meant counts as missing.
        if self._unknown:
            message = f"unrecognized arguments: {' '.join(self._unknown)}{self._advice(self._unknown)}"
        # The message does not repeat a misplaced key, because errors end up in logs.
        super().error(without_keys(message))

    def _check_command(self, below: Commands, words: list[str]) -> None:
        # Flags before a command take no value, so the first word without a dash is the command.
        word = next((one for one in words if not one.startswith("-")), None)
        kind = str(below.metavar).lower()
        if word is None and not words:
            if kind == "command":
                self.exit(2, self.without_words)
            self.error(f"the {kind} is missing; choose one of {', '.join(below.choices)}")
        wrong = [one for one in words[: words.index(word) if word is not None else None] if self._unfit(one)]
        if wrong:
            self.error(f"unrecognized arguments: {' '.join(wrong)}{self._advice(wrong)}")
        if word is not None and word not in below.choices:
            near = advice(word, below.choices) or f"; choose one of {', '.join(below.choices)}"
            self.error(f"there is no {kind} {word!r}{near}")

    def _unfit(self, word: str) -> bool:
        """Return whether this word is a flag that the parser does not know."""
        if not word.startswith("-") or " " in word or _NO_FLAG.fullmatch(word):
            return False
        flag = word.partition("=")[0]
        short = flag if flag.startswith("--") else flag[:2]
        return not any(known.startswith(short) for known in self._flags)

    def _advice(self, unknown: list[str]) -> str:
        flags = [one.partition("=")[0] for one in unknown if one.startswith("--")]
        for flag in flags:
            if flag in UP_FLAGS:
                return f"; use {flag} with 'antiphon up' (without Envoy: --door http)"
            if near := advice(flag, [one for one, shown in self._flags.items() if shown]):
                return near
        return "; write the client's own arguments after --" if self.passes_on else ""
