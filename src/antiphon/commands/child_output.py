"""What children of `antiphon up` write: forwarded as one log, and read for the line that says they serve.

Lives here: the form of a forwarded line, and its level where it has none. Not here: reading a child's pipes
(`children.py`), writing the log (`observability/`).

Invariant: no line of a child is lost but the one that says that it listens, and none reaches standard output.
"""

from __future__ import annotations

import json

from antiphon.config.section import parse_address
from antiphon.config.settings import Settings
from antiphon.observability.logs import write_line

_FATAL = "antiphon: "
"""How the reason begins for which a command ends (`cli.py`)."""


class ChildOutput:
    """Of all children together."""

    def __init__(self, settings: Settings) -> None:
        self._format = settings.log.format
        self._door = settings.door
        self._failing: set[str] = set()
        self.serving: set[str] = set()
        """The names of the workers that said they listen; who starts one again takes its name out."""
        self.port = 0
        """Where the HTTP door listens, once a worker of it has said so."""

    def take(self, name: str, line: str) -> None:
        """Forward a line of a child; a worker's first line says that it listens, which is ours to tell."""
        if line.startswith(("ready: ", "serving: ")):
            self.serving.add(name)
            if self._door == "http":
                self.port = parse_address(line.removeprefix("ready: http://").removesuffix("/v1"))[1]
            return
        level = self._level(name, line)
        if self._format == "console":
            line = f"{name:<11} | {line}"
        elif line.startswith('{"'):
            line = f'{{"process":"{name}",{line[1:]}'
        else:
            line = json.dumps({"process": name, "level": level, "message": line.removeprefix(_FATAL)})
        # A collector that stands still must not stop this process, and by full pipes its children too.
        write_line(line.encode("utf-8", "backslashreplace"))

    def _level(self, name: str, line: str) -> str:
        """A plain line is a child's last words, or belongs to them, where it is told why it ends."""
        if line.startswith(_FATAL) or (name in self._failing and line.startswith("  ")):
            self._failing.add(name)
            return "error"
        self._failing.discard(name)
        return "info"
