"""An argparse parser whose errors suggest the nearest known word, and that passes words on to another program.

Lives here: the parser's class. Not here: commands, flags and help texts (`command_line.py`).

Invariant: an error repeats no misplaced key.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, NoReturn

from antiphon.commands.flags import UP_FLAGS
from antiphon.config.problems import advice, without_keys


class HelpGroup:
    """A titled group of flags in the help. The group records its flags, for suggestions after a misspelt flag."""

    def __init__(self, group: Any, flags: list[str]) -> None:
        self._group = group
        self._flags = flags

    def add_argument(self, *names: str, **options: Any) -> None:
        """See `argparse.ArgumentParser.add_argument`."""
        self._group.add_argument(*names, **options)
        self._flags += names


class Parser(argparse.ArgumentParser):
    """An argparse parser whose error for an unknown word suggests the nearest known word."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._flags: list[str] = []
        self.below: Any = None
        self.without_words = ""
        """The text that the program prints if no command is given."""
        self.passes_on = False
        """Whether the words after `--` belong to another program. They become the attribute `rest`."""
        super().__init__(*args, **options)

    def add_argument(self, *args: Any, **options: Any) -> Any:
        added = super().add_argument(*args, **options)
        if added.help != argparse.SUPPRESS:
            self._flags += added.option_strings
        return added

    def settings_group(self, title: str) -> HelpGroup:
        """Add a titled group of flags, which suggestions after a misspelt flag include."""
        return HelpGroup(self.add_argument_group(title), self._flags)

    def add_subparsers(self, **options: Any) -> Any:
        self.below = super().add_subparsers(**options)
        return self.below

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.below is not None:
            args = sys.argv[1:] if args is None else list(args)
            if args[:1] == ["help"]:
                args = [*args[1:], "--help"]
            self._check_command(args)
        rest: list[str] = []
        if self.passes_on and args is not None and "--" in args:
            at = args.index("--")
            args, rest = args[:at], args[at + 1 :]
        found, unknown = super().parse_known_args(args, namespace)
        if self.passes_on:
            found.rest = rest
        # A command's parser gets all words after the command, so this parser must report the unknown ones.
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        # The message does not repeat a misplaced key, because errors end up in logs.
        super().error(without_keys(message))

    def _check_command(self, words: list[str]) -> None:
        # Flags before a command take no value, so the first word without a dash is the command.
        word = next((one for one in words if not one.startswith("-")), None)
        kind = self.below.metavar.lower()
        if word is None and not words:
            if kind == "command":
                self.exit(2, self.without_words)
            self.error(f"the {kind} is missing; choose one of {', '.join(self.below.choices)}")
        wrong = [one for one in words if not any(flag.startswith(one.partition("=")[0]) for flag in self._flags)]
        if word is None and wrong:
            self.error(f"unrecognized arguments: {' '.join(wrong)}{self._advice(wrong)}")
        if word is not None and word not in self.below.choices:
            near = advice(word, self.below.choices) or f"; choose one of {', '.join(self.below.choices)}"
            self.error(f"there is no {kind} {word!r}{near}")

    def _advice(self, unknown: list[str]) -> str:
        if self.passes_on:
            return "; write the arguments of the client after --"
        flags = [one.partition("=")[0] for one in unknown if one.startswith("--")]
        for flag in flags:
            if flag in UP_FLAGS:
                return f"; 'antiphon up' takes {flag} (without Envoy: --door http)"
            if near := advice(flag, self._flags):
                return near
        return ""
