"""Forwards the output of child processes as one log, and detects the line of a ready child.

This module formats the forwarded lines, and gives a level to lines without a level. This module also finds the reason
that a child printed for its end. `children.py` reads the children's pipes, and the package `observability` writes the
log.

Invariants: no line of a child reaches standard output. The parent does not forward three kinds of lines. Two kinds are
a worker's report that it listens, and lines for another child. The third kind is a child's reason for its end before
all processes are ready, because `supervision.py` reports that reason as an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from antiphon.config.settings import Settings
from antiphon.observability.log_lines import colors_wanted, console_line, render, stamp
from antiphon.observability.logs import write_line

ENVOY = "envoy"
"""The name of the Envoy child process."""
_CUT = "stopped_with_requests_in_flight"
_COUNT = re.compile(r'"cut":(\d+)')
_FATAL = "antiphon: "
"""The prefix of the line in which a command prints the reason for its end (`entry.py`)."""


def last_words(lines: Sequence[str]) -> str:
    """Return the reason for a child's end from its last lines. The result is empty if the child printed no reason."""
    begin = max((at for at, line in enumerate(lines) if line.startswith(_FATAL)), default=None)
    if begin is None:
        return ""
    further = [line for line in lines[begin + 1 :] if line.startswith("  ")]
    return "\n".join([lines[begin].removeprefix(_FATAL), *further])


class ChildOutput:
    """Forwards the output of all child processes of a generation."""

    def __init__(self, settings: Settings, heard: Callable[[str], bool] = lambda line: False) -> None:
        """`heard` receives each line of Envoy. If `heard` returns True, the parent does not log the line, because
        `heard` has passed the line to the sidecars, which log the event."""
        self._heard = heard
        self._console = settings.log.format == "console"
        self._colors = self._console and colors_wanted()
        self._failing: set[str] = set()
        self.everything_is_ready = False
        """Whether all processes were ready once. From that moment on, the reason for a child's end is forwarded too."""
        self.serving: set[str] = set()
        """The names of the workers that reported that they listen. Before a restart, the worker's name is removed from
        this set."""
        self.cut = 0
        """The number of requests that workers cut off when they ended, as the workers reported."""

    def take(self, name: str, line: str) -> None:
        """Forward one line of a child, unless the line is one of the three kinds that the module's docstring names."""
        if line.startswith(("ready: ", "serving: ")):
            self.serving.add(name)
            return
        if name == ENVOY and self._heard(line):
            return
        if _CUT in line and (cut := _COUNT.search(line)) is not None:
            self.cut += int(cut[1])
        is_reason = line.startswith(_FATAL) or (name in self._failing and line.startswith("  "))
        (self._failing.add if is_reason else self._failing.discard)(name)
        if is_reason and not self.everything_is_ready:
            return
        # `write_line` does not block, because a log collector that hangs must not stop this process. If the parent
        # stopped reading, the children's output pipes would fill, and the children would stop too.
        write_line(self._form(name, line, is_reason).encode("utf-8", "backslashreplace"))

    def _form(self, name: str, line: str, is_reason: bool) -> str:
        if line.startswith('{"') and line.endswith("}"):
            if not self._console:
                return f'{{"process":"{name}",{line[1:]}'
            try:
                return console_line({"process": name, **json.loads(line)}, colors=self._colors)
            except ValueError:
                pass
        if is_reason:
            told = {"level": "error", "message": "process_failed", "cause": line.removeprefix(_FATAL)}
        elif self._console:
            return f"{name} | {line}"
        else:
            told = {"level": "info", "message": "process_output", "text": line}
        made: dict[str, object] = {"process": name, **told}
        stamp(made)
        return console_line(made, colors=self._colors) if self._console else render(made).decode()
