"""Implements `antiphon replay`: serves recorded answers as a chat server, without a model."""

from __future__ import annotations

import argparse
import os

from antiphon.commands.chat_servers import counted, print_exchange, serve_app
from antiphon.recordings.file import read_file
from antiphon.recordings.replayer import Played, Replayer
from antiphon.recordings.scrubbing import environment_secrets


def run(arguments: argparse.Namespace) -> int:
    entries = read_file(arguments.file)
    replayer = Replayer(
        entries,
        in_time=arguments.speed == "recorded",
        loop=arguments.loop,
        secrets=environment_secrets(os.environ),
        report=_print,
    )
    values = {"file": str(arguments.file), "entries": len(entries)}
    return serve_app(replayer.app, arguments.listen, values if arguments.json else None)


def _print(played: Played) -> None:
    model = f" {played.model}" if played.model else ""
    line = f"{played.method} {played.path}{model}  {counted(played.chunks, 'chunk')}"
    print_exchange(played.number, line, status=played.status, cut=played.cut, note=played.note)
