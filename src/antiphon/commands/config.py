"""`antiphon config`: prints the effective settings as YAML, secrets redacted; with `--schema` their JSON schema."""

from __future__ import annotations

import argparse
import json
import sys

import yaml

from antiphon.commands.flags import settings_of
from antiphon.config.settings import settings_schema


def run(arguments: argparse.Namespace) -> int:
    if arguments.schema:
        print(json.dumps(settings_schema(), indent=2))
    else:
        yaml.safe_dump(settings_of(arguments).redacted(), sys.stdout, sort_keys=False)
    return 0
