"""Finds the tests that reach each mutant: runs the tests once with marks, and stores the result in `.mutation/`.

Lives here: the selection of missing data, the recording, and the file with the records. Not here: the marks
(`probes.py`), the test files that may run (`judges.py`).

A record covers one mutant and one test file. A record is valid while the mutant's source file and the test file are
unchanged. A change of a third file may let a test reach a mutant that it did not reach before. For an exact result,
delete `.mutation/`.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import orjson

from lab.mutation import probes
from lab.mutation.judges import around, near
from lab.mutation.operators import Mutant
from lab.mutation.trees import ROOT, run_tests

KEPT = ROOT / ".mutation/reached.json"


@dataclass(frozen=True, slots=True)
class Reached:
    """The tests that reach a mutant, and their files in the order in which they should run."""

    files: list[str]
    tests: list[str] | None
    """The tests, or None for all tests of the files."""
    seconds: float
    """The total run time of these tests in seconds."""
    longest: float


class Record:
    """The stored knowledge of tests and mutants."""

    def __init__(self) -> None:
        # For each test file: its digest, and the seconds of each test that passed.
        self._seconds: dict[str, tuple[str, dict[str, float]]] = {}
        # For each pair of mutant and test file: the digests of both files, and the tests that reach the mutant.
        self._reached: dict[str, dict[str, tuple[str, str, list[str]]]] = {}
        if KEPT.exists():
            kept = orjson.loads(KEPT.read_bytes())
            self._seconds, self._reached = kept["seconds"], kept["reached"]

    def complete(self, mutants: list[Mutant], judges: list[str], jobs: int, snapshot: Path) -> list[str]:
        """Record the missing pairs of these mutants and test files. Returns the tests that fail without any mutant."""
        digests = _Digests()
        missing = {
            mutant: files
            for mutant in mutants
            if (files := [file for file in judges if not self._known(mutant, file, digests)])
        }
        if not missing:
            return []
        files = sorted({file for every in missing.values() for file in every})
        print(f"recording which tests of {len(files)} files reach {len(missing)} mutants", flush=True)
        numbered = list(enumerate(missing))
        reached: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        with tempfile.TemporaryDirectory(prefix="antiphon-marks-") as made:
            tree = Path(shutil.copytree(snapshot, Path(made), dirs_exist_ok=True))
            probes.place_marks(tree, numbered)
            several = ("-n", str(jobs), "--dist", "worksteal") if jobs > 1 else ()
            _, went = run_tests(tree, files, *several, limit=None)
            for number, test in dict.fromkeys(probes.notes(tree)):
                reached[numbered[number][1].key, test.partition("::")[0]].append(test)
        failed = {test for _, outcome, test in went if outcome == "failed"}
        for file in files:
            self._seconds[file] = (digests[file], {})
        for seconds, _, test in went:
            if test not in failed and (entry := self._seconds.get(test.partition("::")[0])):
                entry[1][test] = entry[1].get(test, 0.0) + seconds
        for mutant, every in missing.items():
            known = self._reached.setdefault(mutant.key, {})
            for file in every:
                known[file] = (digests[mutant.path], digests[file], reached[mutant.key, file])
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_bytes(orjson.dumps({"seconds": self._seconds, "reached": self._reached}))
        return sorted(failed)

    def of(self, mutant: Mutant, judges: list[str]) -> Reached:
        """The tests that reach a mutant and pass without it. Tests that name its module come first, then the fastest.
        If no test is known to reach it, returns the tests that name the module or its package."""
        known = self._reached[mutant.key]
        seconds = {
            file: {test: taken[test] for test in known[file][2] if test in taken}
            for file in judges
            if (taken := self._seconds[file][1])
        }
        if not any(seconds.values()):
            # A child process without the environment variables, as in the sandbox, records no mark.
            seconds = {file: self._seconds[file][1] for file in around(ROOT, mutant.path, judges)}
        first = near(ROOT, mutant.path, judges)
        files = sorted(
            (file for file, tests in seconds.items() if tests),
            key=lambda file: (file not in first, sum(seconds[file].values())),
        )
        every = {test: taken for file in files for test, taken in seconds[file].items()}
        return Reached(files, list(every), sum(every.values()), max(every.values(), default=0.0))

    def _known(self, mutant: Mutant, file: str, digests: _Digests) -> bool:
        at = self._reached.get(mutant.key, {}).get(file)
        return at is not None and at[0] == digests[mutant.path] and at[1] == digests[file]


class _Digests(dict[str, str]):
    def __missing__(self, path: str) -> str:
        self[path] = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()[:16]
        return self[path]
