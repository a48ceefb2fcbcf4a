"""Forwards the output of the child processes to the log of `antiphon up`.

This module formats each line, and adds a log level to lines that have none. It notes which workers have reported that
they listen or have drained. If a child ends with an error message, this module finds the message. `children.py` reads
the children's pipes, and the package `observability` writes the log.

Invariants: the parent process never writes a child's line to standard output. From Envoy's lines it removes
API keys and the secrets of the settings, because these lines quote paths that clients sent. The parent process does not
forward a worker's report that it listens or has drained, or a line that is only for the sidecars. Until all processes
are ready, it does not forward the error message with which a child ends, because `supervision.py` reports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress

from antiphon.config.settings import Settings
from antiphon.envoy.routes import UNKNOWN_URL
from antiphon.local_keys import ADMIN_TOKEN
from antiphon.observability.log_lines import colors_wanted, console_line, render, stamp
from antiphon.observability.logs import write_line
from antiphon.redaction import SecretSearch, without_credentials

ENVOY = "envoy"
"""The name of the Envoy child process."""
DRAINED = "drained"
"""The line with which a sidecar reports that it waits for Envoy's end."""
_CUT = "stopped_with_requests_in_flight"
_COUNT = re.compile(r'"cut":(\d+)')
_LONGEST_PATH = 256
"""The length at which Envoy cuts a path in its log lines (`envoy/failures.py`)."""
_LIKE_A_KEY = re.compile(r"(?<=/)(?=[^/]*[0-9])[^/]{16,}")
"""A segment of an unknown path that may be a client's key. The parent process does not know the clients' keys."""
_FATAL = "antiphon: "
"""The prefix of the error message with which a command ends (`entry.py`)."""


def last_words(lines: Sequence[str]) -> str:
    """Return the error message with which a child ended, from its last lines of output. Return an empty string if the
    child printed no error message."""
    begin = max((at for at, line in enumerate(lines) if line.startswith(_FATAL)), default=None)
    if begin is None:
        return ""
    further = [line for line in lines[begin + 1 :] if line.startswith("  ")]
    return "\n".join([lines[begin].removeprefix(_FATAL), *further])


class ChildOutput:
    """Forwards the output of all child processes of a generation."""

    def __init__(self, settings: Settings, heard: Callable[[str], bool] = lambda line: False) -> None:
        """`heard` receives each line of Envoy's output. It returns True for a line that it has passed to the sidecars.
        The parent process does not log such a line, because the sidecars log the event."""
        self._heard = heard
        self._secrets = SecretSearch(settings.secrets())
        self._token = settings.data / ADMIN_TOKEN if settings.serves_admin and settings.admin.token is None else None
        self._console = settings.log.format == "console"
        self._colors = self._console and colors_wanted()
        self._failing: set[str] = set()
        self.everything_is_ready = False
        """Whether all processes have been ready at the same time. From then on, the parent process also forwards the
        error message with which a child ends."""
        self.serving: set[str] = set()
        """The names of the workers that have reported that they listen. The parent process removes a worker's name
        before it restarts the worker."""
        self.drained: set[str] = set()
        """The names of the workers that have reported the end of their drain."""
        self.cut = 0
        """The number of requests that the workers cut when they stopped."""

    def take(self, name: str, line: str) -> None:
        """Forward one line of a child's output. Skip the lines that the module's docstring excludes."""
        if line.startswith(("ready: ", "serving: ")):
            self.serving.add(name)
            return
        if line == DRAINED:
            self.drained.add(name)
            return
        if name == ENVOY:
            line = self._without_credentials(line)
            if self._heard(line):
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

    def _without_credentials(self, line: str) -> str:
        """Return a line of Envoy without API keys and the secrets of the settings. A client may put a key into the path
        of a URL, also into its query."""
        with suppress(OSError):
            # A sidecar creates the file after the start.
            if self._token is not None and (token := self._token.read_text("utf-8", "replace").strip()):
                self._secrets, self._token = self._secrets.joined([token]), None
        try:
            told = json.loads(line)
            path = str(told["path"])
        except (ValueError, KeyError, TypeError):
            return without_credentials(line, self._secrets)
        clean, query, _ = path.partition("?")
        if not query and len(path) >= _LONGEST_PATH:
            # The end may be a part of a key.
            clean = clean.rpartition("/")[0] + "/…"
        clean = without_credentials(clean, self._secrets)
        if told.get("code") == UNKNOWN_URL:
            clean = _LIKE_A_KEY.sub("[redacted]", clean)
        return line if clean == path else json.dumps({**told, "path": clean}, separators=(",", ":"))

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
