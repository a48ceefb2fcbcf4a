"""`antiphon config`: the effective settings as YAML, secrets redacted."""

from __future__ import annotations

import argparse
import sys

import yaml

from antiphon.commands.flags import settings_of


def run(arguments: argparse.Namespace) -> int:
    yaml.safe_dump(settings_of(arguments).redacted(), sys.stdout, sort_keys=False)
    return 0
