"""`antiphon doctor`: whether everything Antiphon needs is there, what the upstreams can do, and what to change.

Lives here: the checks of this machine and these settings, and the report. Not here: asking a chat server
(`upstream_probes.py`, `upstream_identity.py`), judging what it can do (`upstream_report.py`).

Invariant: exit status 0 means that nothing was found that would keep requests from being served; no secret is printed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from antiphon.app import prepare_data
from antiphon.commands.envoy_config import endpoints
from antiphon.commands.flags import settings_of
from antiphon.commands.upstream_report import Finding, examine
from antiphon.config import Settings
from antiphon.envoy.binary import find_envoy
from antiphon.envoy.bootstrap import bootstrap, fill_in_secret, to_yaml
from antiphon.errors import AntiphonError

__all__ = ["run"]

_ENVOY_SECONDS = 30
_NEWEST_TESTED = "1.40"
_HERE, _ENVOY = "this machine", "Envoy"


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    key = os.environ.get(arguments.key_env, "") if arguments.key_env else ""
    findings = [
        *_this_machine(settings),
        *asyncio.run(examine(settings, arguments.model, key, images=arguments.images)),
    ]
    problems = sum(finding.verdict == "problem" for finding in findings)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
        return 1 if problems else 0
    where = ""
    for finding in findings:
        if finding.where != where:
            where = finding.where
            print(where)
        print(f"  {finding.verdict:8} {finding.what}")
        if finding.advice:
            print(f"           → {finding.advice}")
    print("doctor: all good" if not problems else f"doctor: {problems} to fix", file=sys.stderr)
    return 1 if problems else 0


def _this_machine(settings: Settings) -> list[Finding]:
    return [_data_folder(settings), *_envoy(settings)]


def _data_folder(settings: Settings) -> Finding:
    try:
        prepare_data(settings.data)
        with tempfile.NamedTemporaryFile(dir=settings.data):
            pass
    except (OSError, AntiphonError) as error:
        return Finding(_HERE, "problem", f"data folder {settings.data}: {error}", "choose another with --data")
    return Finding(_HERE, "ok", f"data folder {settings.data.absolute()} can be written")


def _envoy(settings: Settings) -> list[Finding]:
    if settings.door == "http":
        return [Finding(_ENVOY, "note", "door: http, so no Envoy is needed")]
    try:
        binary = find_envoy(settings.envoy.binary)
        found = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_ENVOY_SECONDS, check=True
        )
    except (AntiphonError, OSError, subprocess.SubprocessError) as error:
        return [Finding(_ENVOY, "problem", str(error), "or serve without it: antiphon up --door http")]
    version = re.search(r"\d+\.\d+\.\d+", found.stdout)
    text = version[0] if version else "of unknown version"
    tested = text.startswith(_NEWEST_TESTED)
    findings = [
        Finding(
            _ENVOY,
            "ok" if tested else "note",
            f"Envoy {text} ({binary})",
            "" if tested else f"tested with {_NEWEST_TESTED}",
        )
    ]
    with tempfile.TemporaryDirectory(prefix="antiphon-doctor-") as folder:
        config = Path(folder) / "envoy.yaml"
        config.touch(0o600)
        config.write_text(fill_in_secret(to_yaml(bootstrap(settings, sidecars=endpoints(settings))), settings))
        command = [str(binary), "--mode", "validate", "-c", str(config), "--log-level", "error"]
        try:
            checked = subprocess.run(command, capture_output=True, text=True, timeout=_ENVOY_SECONDS, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            return [*findings, Finding(_ENVOY, "problem", f"the configuration could not be checked: {error}")]
    if checked.returncode:
        last = (checked.stderr.strip() or checked.stdout.strip()).splitlines()[-1:]
        return [*findings, Finding(_ENVOY, "problem", f"the generated configuration is refused: {''.join(last)[:300]}")]
    return [*findings, Finding(_ENVOY, "ok", "the generated configuration is accepted")]
