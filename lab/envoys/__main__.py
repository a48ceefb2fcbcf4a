"""Runs the tests of Antiphon behind Envoy against several Envoy versions, one after the other, and prints a table.

Lives here: the selection of the tests, running them, and the table. Not here: the tests (`tests/e2e`), the choice of
the Envoy binary in a test (`tests/support/envoy_binary.py`).

Invariant: every printed count comes from pytest in this run. A version that cannot be tested has a row with the reason.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

from antiphon.envoy.versions import find_envoy, full_version, parse_version
from antiphon.errors import ConfigError

_ROOT = Path(__file__).parents[2]
_TESTS = ("tests/unit/envoy", "tests/e2e")
"""The folders whose tests start an Envoy."""
_OPTIONS = ("-m", "not full and not slow", "-k", "not grpcio")
"""Options that select the quick tests with one of the sidecar's two gRPC servers, because both give Envoy the same
bytes."""
_SECONDS = 3600
_LONGEST_CAUSE = 300
"""The maximum length of a failure's cause in the table, in characters."""


def main() -> int:
    given = sys.argv[1:]
    first_option = next((place for place, one in enumerate(given) if one.startswith("-")), len(given))
    binaries = [Path(one).absolute() for one in given[:first_option]] or [find_envoy(None)]
    options = given[first_option:] or list(_OPTIONS)
    print(f"{datetime.now(UTC):%Y-%m-%d}, pytest {shlex.join([*_TESTS, *options])}\n")
    print("| Envoy | passed | failed | skipped | seconds |\n| --- | --- | --- | --- | --- |", flush=True)
    failed: list[str] = []
    for binary in binaries:
        row, more = _tried(binary, options)
        print(f"| {' | '.join(row)} |", flush=True)
        failed += more
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0


def _tried(binary: Path, options: list[str]) -> tuple[list[str], list[str]]:
    """Run the tests with one Envoy. Returns its table row and the failed tests."""
    try:
        version = full_version(binary)
    except ConfigError as error:
        return [binary.name, str(error), "", "", ""], [str(error)]
    try:
        parse_version(version)
    except ConfigError as error:
        return [version, f"refused: {error}", "", "", ""], []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="antiphon-envoys-") as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", *_TESTS, *options, "--envoy", str(binary)),
                *("-n", "2", "--dist", "worksteal", "-q", "--tb=native", f"--junit-xml={report}"),
            ],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
        if not report.is_file():
            said = (done.stdout + done.stderr).strip().splitlines()[-1:]
            return [version, "pytest broke", "", "", ""], [f"{version}: {''.join(said)}"]
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    wrong = [
        f"{version}: {case.get('classname')}::{case.get('name')}: {cause}"
        for case in suite.iter("testcase")
        if (cause := _cause(case)) is not None
    ]
    total, skipped = int(suite.get("tests", "0")), int(suite.get("skipped", "0"))
    counts = [str(total - skipped - len(wrong)), str(len(wrong)), str(skipped), f"{time.monotonic() - began:.0f}"]
    if done.returncode and not wrong:
        wrong = [f"{version}: pytest ended with {done.returncode}"]
    return [version, *counts], wrong


def _cause(case: ElementTree.Element) -> str | None:
    """The first line of the failure message of a test, or None if it passed."""
    found = [*case.iter("failure"), *case.iter("error")]
    return found[0].get("message", "").partition("\n")[0][:_LONGEST_CAUSE] if found else None


if __name__ == "__main__":
    sys.exit(main())
