"""Implements `antiphon doctor`: checks the machine, the settings and the upstreams, and reports what to change.

This module prints the findings. `checks.py` checks this machine, these settings, the database, the token issuer, the
trace collector and Envoy. `upstream_probes.py` probes a chat server, and `upstream_report.py` judges its features.

Invariants: exit status 0 means that the command found no problem that makes requests fail. A failing trace collector
does not change the exit status, because requests do not need the collector. The output contains no secret.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from dataclasses import asdict

from antiphon.commands.doctor.checks import (
    examine_blobs,
    examine_collector,
    examine_database,
    examine_envoy,
    examine_machine,
    to_the_end,
)
from antiphon.commands.doctor.upstream_report import examine
from antiphon.commands.flags import settings_of
from antiphon.commands.terminal import printable
from antiphon.engine.ports.findings import Finding


def run(arguments: argparse.Namespace) -> int:
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    key = os.environ.get(arguments.key_env, "") if arguments.key_env else ""
    findings: list[Finding] = []
    upstreams = examine(settings, arguments.model, key, images=arguments.images)
    sources = (
        *(examine_machine(settings), examine_envoy(settings), examine_database(settings), examine_blobs(settings)),
        *(examine_collector(settings.tracing), upstreams),
    )
    for source in sources:
        async for finding in to_the_end(source):
            if not arguments.json:
                _show(finding, findings[-1].where if findings else "")
            findings.append(finding)
    if arguments.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print(f"doctor: {_summary(findings)}", file=sys.stderr)
    return 1 if any(finding.verdict == "problem" for finding in findings) else 0


def _show(finding: Finding, where: str) -> None:
    """Print a finding immediately, because the next one may take a minute. `where` is the heading of the previous
    finding."""
    if finding.where != where:
        print(printable(finding.where))
    # Model names and error texts come from the upstream, so this function escapes control characters.
    print(f"  {finding.verdict:8} {printable(finding.what)}")
    if finding.advice:
        print(f"           → {printable(finding.advice)}")
    sys.stdout.flush()


def _summary(findings: list[Finding]) -> str:
    """The counts of findings, or "all good" if every check passed and no probed server lacks a feature."""
    problems = sum(finding.verdict == "problem" for finding in findings)
    notes = sum(finding.verdict == "note" for finding in findings)
    known = sum(finding.lacking and finding.verdict == "ok" for finding in findings)
    said = [f"{problems} to fix"] if problems else []
    said += [f"{notes} to note"] if notes else []
    said += [f"{known} features that the server lacks, as its profile says"] if known else []
    if not said:
        return "all good"
    return ", ".join(said) if problems else f"nothing to fix, {', '.join(said)}"
