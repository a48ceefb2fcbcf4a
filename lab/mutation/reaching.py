"""Which tests pass the place of which mutant: recorded by running them once with marks, and kept in `.mutation/`.

Lives here: what has to be recorded, the recording, and the file in which it is kept. Not here: the marks (`probes.py`),
and which tests are asked at all (`judges.py`).

A record is of one mutant and one file of tests. It is valid while the mutant's source file and the file of tests are
unchanged. A change elsewhere may let a test reach what it did not reach before, so to be exact, remove the folder.
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
    """The tests that pass the place of a mutant, in files in the order in which they are worth running."""

    files: list[str]
    tests: list[str] | None
    """None: all in those files."""
    seconds: float
    """What they took, all together."""
    longest: float


class Record:
    """What is known of tests and mutants."""

    def __init__(self) -> None:
        # File of tests: its digest, and how long each test took that passed.
        self._seconds: dict[str, tuple[str, dict[str, float]]] = {}
        # Mutant and file of tests: the digests of both files, and the tests that reach the mutant.
        self._reached: dict[str, dict[str, tuple[str, str, list[str]]]] = {}
        if KEPT.exists():
            kept = orjson.loads(KEPT.read_bytes())
            self._seconds, self._reached = kept["seconds"], kept["reached"]

    def complete(self, mutants: list[Mutant], judges: list[str], jobs: int, snapshot: Path) -> list[str]:
        """Record what is missing of these mutants and the files of tests that judge them; gives the tests that fail
        without any mutant."""
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
        """The tests that reach a mutant and passed without it: first those that name its module, then the cheapest.
        Where none is known to get there, those that name the module or its package."""
        known = self._reached[mutant.key]
        seconds = {
            file: {test: taken[test] for test in known[file][2] if test in taken}
            for file in judges
            if (taken := self._seconds[file][1])
        }
        if not any(seconds.values()):
            # A child process that is told nothing, as in a sandbox, leaves no note.
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
