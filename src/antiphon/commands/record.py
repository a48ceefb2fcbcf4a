"""Implements `antiphon record`: runs a recorder in front of a chat server."""

from __future__ import annotations

import argparse
import os
import sys

from pydantic import TypeAdapter, ValidationError

from antiphon.commands.chat_servers import counted, print_exchange, serve_app
from antiphon.config.section import BaseUrl
from antiphon.errors import ConfigError
from antiphon.recordings.file import CassetteFile
from antiphon.recordings.recorder import Outcome, Recorder
from antiphon.recordings.scrubbing import environment_secrets


def run(arguments: argparse.Namespace) -> int:
    upstream = _upstream(arguments.upstream)
    secrets = environment_secrets(os.environ) + tuple(_variable("--secret-env", name) for name in arguments.secret_env)
    key = _variable("--key-env", arguments.key_env) if arguments.key_env else ""
    file = CassetteFile(arguments.target, append=arguments.append)
    failed = list[Outcome]()

    def report(outcome: Outcome) -> None:
        if outcome.failed:
            failed.append(outcome)
        _print(outcome)

    before = file.entries
    try:
        recorder = Recorder(upstream, file, key=key, secrets=secrets, report=report)
        values = {"upstream": upstream, "file": str(arguments.target), "entries": before}
        serve_app(recorder.app, arguments.listen, values if arguments.json else None)
    finally:
        file.close()
    print(f"recorded {counted(file.entries - before, 'exchange')} to {arguments.target}", file=sys.stderr)
    return 1 if failed else 0


def _upstream(url: str) -> str:
    try:
        return str(TypeAdapter(BaseUrl).validate_python(url))
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        if "credentials" in problem:
            problem = "must not hold a user or a password; put a key into a variable and name it with --key-env"
        raise ConfigError(f"--upstream: {problem}") from None


def _variable(flag: str, name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{flag}: the variable {name} is not set")
    if not value.isprintable() or not value.isascii():
        raise ConfigError(f"{flag}: the value of {name} has characters that no key has; use printable ASCII")
    return value


def _print(outcome: Outcome) -> None:
    model = f" {outcome.model}" if outcome.model else ""
    line = f"{outcome.method} {outcome.path}{model}  {counted(outcome.chunks, 'chunk')}  {outcome.seconds:.2f} s"
    print_exchange(outcome.number, line, status=outcome.status, cut=outcome.cut, note=outcome.note)
