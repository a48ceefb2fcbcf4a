"""Implements `antiphon demo-upstream`: runs the scripted chat server, to try Antiphon without a model."""

from __future__ import annotations

import argparse

from antiphon.commands.chat_servers import serve_app
from antiphon.demo_upstream import make_app


def run(arguments: argparse.Namespace) -> int:
    return serve_app(make_app(), arguments.listen)
