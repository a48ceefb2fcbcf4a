"""`scripts/lab mutate`: makes one small change to the source at a time, and checks whether a test fails.

    scripts/lab mutate --sample 20                     # a number of mutants, spread over the packages
    scripts/lab mutate --package stores --package doors --sample 40
    scripts/lab mutate --file src/antiphon/translation/answer/sse.py
    scripts/lab mutate --list --package tools          # lists the mutants without running tests
    scripts/lab mutate --draw 60 --seed 7              # lines of all packages, with the likely tests
    scripts/lab mutate --noticed --at-least 90         # some that a test detected before, as in CI

Lives here: choosing mutants, running the tests of each in a copy of the tree, and the table. Not here: the changes
(`operators.py`), the choice of tests (`judges.py`, `reaching.py`), the copies (`trees.py`). `equivalent.txt` lists
mutants that no test can detect, and `noticed.txt` those that CI repeats.

The order of all mutants depends only on the seed and the mutated line. So a sample stays the same while other code
changes. A test that hangs fails at its own timeout. If the tests of a mutant exceed the total time limit, the score
does not count the mutant.

A draw selects lines of code from each package in proportion to its mutable lines, but at least one. It makes one change
to each line. A draw needs no record of reached lines. For each mutant, the tests that are likely to detect it run in
stages (`judges.likely`) within a time limit. Then the quick tests of whole gateways run (`judges.GATEWAYS`) within the
same limit again. For packages whose code runs in processes of their own (`judges.OF_PROCESSES`), the slow tests of such
processes run last. A mutant that no test detects has survived.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue

from lab.mutation.judges import GATEWAYS, OF_PROCESSES, PROCESSES, judges, likely
from lab.mutation.operators import OPERATORS, Mutant, find_mutants
from lab.mutation.reaching import Reached, Record
from lab.mutation.trees import ROOT, changed, copy_tree, run_tests

EQUIVALENT = Path(__file__).with_name("equivalent.txt")
NOTICED = Path(__file__).with_name("noticed.txt")
GROUPS = ("engine", "translation", "stores", "doors", "tools")
"""The packages of a sample. A draw uses every package."""
TOP = "top"
"""The name under which `--package` and the table list the files in no package of `antiphon`."""
PACKAGES = (
    *sorted(
        folder.name for folder in (ROOT / "src/antiphon").iterdir() if folder.is_dir() and folder.name[0] not in "_."
    ),
    TOP,
)
_GENERATED = "/_pb/"
_LIKELY = ("--timeout=30",)
_OF_GATEWAYS = ("--timeout=60", "-m", "not slow and not full")
_SLOW = ("--timeout=120", "-m", "slow and not full")
_SLOW_FACTOR = 4
"""How many times the limit of the other tests the slow tests of processes have."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A mutant with its result: `killed`, `survived`, `timed out`, or `broken` if no test ran."""

    mutant: Mutant
    verdict: str
    seconds: float
    by: str
    """The test that detected the mutant, or the number of tests that passed."""


def group_of(path: str) -> str:
    """The name of the package in which the table counts a file."""
    package, folder, _ = path.removeprefix("src/antiphon/").partition("/")
    return package if folder else TOP


def all_mutants(packages: tuple[str, ...], files: list[str]) -> dict[str, list[Mutant]]:
    """All mutants by package, in the order of the files."""
    found: dict[str, list[Mutant]] = {}
    for package in packages:
        source = ROOT / "src/antiphon"
        for file in sorted(source.glob("*.py") if package == TOP else (source / package).rglob("*.py")):
            path = str(file.relative_to(ROOT))
            if _GENERATED not in path and (not files or path in files):
                found.setdefault(package, []).extend(find_mutants(path, file.read_text()))
    return found


def equivalents() -> dict[str, str]:
    """The mutants that no test can detect, with the reason, from lines of the form `key | reason`."""
    lines = [line for line in EQUIVALENT.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.rsplit(" | ", 1) for line in lines)


def noticed() -> dict[str, Reached]:
    """The mutants of `noticed.txt` with the test that detected each, from lines of the form `key | test`. Raises
    `SystemExit` if a test does not exist."""
    found: dict[str, Reached] = {}
    for line in NOTICED.read_text().splitlines():
        if not line.startswith("#"):
            key, test = line.rsplit(" | ", 1)
            file, _, name = test.partition("::")
            # The test classes of a contract are in another file than the tests that run them.
            places = (ROOT / file, *(ROOT / file).parent.glob("*_contract.py"))
            if not any(f"def {name.rpartition('::')[2]}(" in place.read_text() for place in places):
                raise SystemExit(f"noticed.txt names a test that is not there: {test}")
            found[key] = Reached([test], None, 30.0, 9.0)
    return found


def chosen(mutants: dict[str, list[Mutant]], sample: int | None, seed: int) -> list[Mutant]:
    """Choose about the same number of mutants from each package, in the order of the seed."""
    drawn = [_drawn(ones, seed) for ones in mutants.values()]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*drawn))
    return list(itertools.islice((one for one in turns if one is not None), sample))


def drawn_lines(mutants: dict[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """Choose `count` lines with one mutant each, from each package in proportion to its mutable lines, but at least
    one."""
    lines = {name: len({(one.path, one.line) for one in ones}) for name, ones in mutants.items() if ones}
    small = {name for name, each in lines.items() if count * each < sum(lines.values())}
    rest = sum(each for name, each in lines.items() if name not in small)
    exact = {name: 1.0 if name in small else max(count - len(small), 0) * each / rest for name, each in lines.items()}
    room = {name: int(each) for name, each in exact.items()}
    for name in sorted(exact, key=lambda name: room[name] - exact[name])[: count - sum(room.values())]:
        room[name] += 1
    return [one for name, ones in mutants.items() for one in itertools.islice(_one_a_line(ones, seed), room[name])]


def _one_a_line(mutants: list[Mutant], seed: int) -> Iterator[Mutant]:
    """Choose one mutant for each line. The order of the lines does not depend on the number of their mutants."""
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for one in mutants:
        lines.setdefault((one.path, one.line), []).append(one)
    ordered = sorted(
        lines.values(), key=lambda ones: hashlib.sha256(f"{seed}|{ones[0].path}|{ones[0].was}".encode()).digest()
    )
    return (one for ones in ordered for one in itertools.islice(_drawn(ones, seed), 1))


def _drawn(mutants: list[Mutant], seed: int) -> Iterator[Mutant]:
    # Skip a mutant that is not valid Python.
    drawn = sorted(mutants, key=lambda one: one.order(seed))
    return (one for one in drawn if one.apply((ROOT / one.path).read_text()) is not None)


def judge_all(
    picked: list[Mutant], jobs: int, judge_in: Callable[[Path, Mutant], Judged], snapshot: Path
) -> Iterator[Judged]:
    """Yield the result of each mutant when it is known. `jobs` copies of the tree work in parallel."""
    with tempfile.TemporaryDirectory(prefix="antiphon-mutants-") as made, ThreadPoolExecutor(jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            trees.put(Path(shutil.copytree(snapshot, Path(made, str(number)))))

        def judge(mutant: Mutant) -> Judged:
            tree = trees.get()
            try:
                return judge_in(tree, mutant)
            finally:
                trees.put(tree)

        for ended in as_completed([pool.submit(judge, one) for one in picked]):
            yield ended.result()


def recorded(picked: list[Mutant], jobs: int, snapshot: Path) -> Callable[[Mutant], Reached]:
    """A function that returns the tests that reach a mutant. Records them first for mutants without a record."""
    record, files = Record(), judges(ROOT)
    for test in record.complete(picked, files, jobs, snapshot):
        print(f"fails without any mutant, and judges none: {test}", flush=True)
    return lambda mutant: record.of(mutant, files)


def judged(tree: Path, mutant: Mutant, reached: Reached) -> Judged:
    """Run the tests that reach this mutant until one fails. The time limit is several times their usual run time."""
    if not reached.files:
        return Judged(mutant, "survived", 0.0, "no test gets there")
    began = time.monotonic()
    each = 30 + 10 * reached.longest
    limit = 120 + each + 5 * reached.seconds
    with changed(tree, mutant):
        status, went = run_tests(tree, reached.files, "-x", f"--timeout={each:.0f}", limit=limit, only=reached.tests)
    verdict = {None: "timed out", 0: "survived", 1: "killed", 2: "killed", 4: "killed"}.get(status, "broken")
    failed = next((test for _, outcome, test in went if outcome == "failed"), "")
    if not failed:
        failed = "when tests were collected" if verdict == "killed" else f"{len({test for *_, test in went})} tests"
    return Judged(mutant, verdict, time.monotonic() - began, failed)


class Likely:
    """Runs the tests that are likely to detect a mutant, and then those of whole gateways, for at most `seconds`
    each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._files = judges(ROOT)
        self._sound: dict[str, bool] = {}
        """For tests that failed: whether they pass without a mutant."""

    def judge(self, tree: Path, mutant: Mutant) -> Judged:
        """Run the tests stage by stage, until a test fails that passes without the mutant."""
        began = time.monotonic()
        stages: list[tuple[list[str], Sequence[str], float]] = [
            (stage, _LIKELY, self._seconds) for stage in likely(ROOT, mutant.path, self._files)
        ]
        stages.append((list(GATEWAYS), _OF_GATEWAYS, 2 * self._seconds))
        if group_of(mutant.path) in OF_PROCESSES:
            stages.append((list(PROCESSES), _SLOW, (2 + _SLOW_FACTOR) * self._seconds))
        ran = 0
        for stage, options, seconds in stages:
            while (left := seconds - (time.monotonic() - began)) > 0:
                unsound = [f"--deselect={test}" for test, sound in self._sound.items() if not sound]
                with changed(tree, mutant):
                    status, went = run_tests(tree, stage, "-x", *options, *unsound, limit=left)
                failed = next((test for _, outcome, test in went if outcome == "failed"), "")
                if failed and not self._passes(tree, failed, options):
                    continue
                ran += len({test for *_, test in went})
                if failed or status in (1, 2, 4):
                    by = failed or "when tests were collected"
                    return Judged(mutant, "killed", time.monotonic() - began, by)
                break
        return Judged(mutant, "survived", time.monotonic() - began, f"{ran} tests")

    def _passes(self, tree: Path, test: str, options: Sequence[str]) -> bool:
        if test not in self._sound:
            self._sound[test] = run_tests(tree, [test], *options, limit=120)[0] == 0
        return self._sound[test]


def diff(mutant: Mutant) -> Iterator[str]:
    """The changed lines of a mutant, as a diff."""
    source = (ROOT / mutant.path).read_text()
    changed = mutant.apply(source) or ""
    lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
    return (f"    {line}" for line in lines if line[:3] not in ("---", "+++") and line[:2] != "@@")


def table(judged: list[Judged]) -> str:
    """The results by package, as a table."""
    rows: list[tuple[str, ...]] = [("package", "killed", "timed out", "survived", "score")]
    for name in (*PACKAGES, "all"):
        counts = Counter(one.verdict for one in judged if name in ("all", group_of(one.mutant.path)))
        if counts:
            rows.append((name, *(str(counts[each]) for each in rows[0][1:4]), score(counts)))
    return "\n".join(f"{one[0]:14}" + "".join(f"{each:>11}" for each in one[1:]) for one in rows)


def score(counts: Counter[str]) -> str:
    """The share of detected mutants among those with a result."""
    judged = counts["killed"] + counts["survived"]
    return f"{100 * counts['killed'] / judged:.0f} %" if judged else "-"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/lab mutate", description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--package", action="append", choices=PACKAGES, help="only these (default: all)")
    parser.add_argument("--file", action="append", default=[], help="only this source file")
    parser.add_argument("--operator", action="append", choices=OPERATORS, help="only these operators")
    parser.add_argument("--without", action="append", default=[], choices=OPERATORS, help="not these operators")
    parser.add_argument("--sample", type=int, help="so many mutants, spread over the packages (default: all)")
    parser.add_argument("--draw", type=int, help="so many lines of all packages, judged by the tests likely to notice")
    parser.add_argument("--seconds", type=float, default=100.0, help="of a draw: so long for each, on two idle cores")
    parser.add_argument("--seed", type=int, default=1, help="another draw")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="so many at once, each in its own copy")
    parser.add_argument("--noticed", action="store_true", help="those of noticed.txt, each by the test that it names")
    parser.add_argument("--at-least", type=float, default=0.0, help="percent to be noticed, else status 1")
    parser.add_argument("--list", action="store_true", help="say what would be tried")
    return parser.parse_args()


def main() -> int:
    options = _options()
    every = all_mutants(PACKAGES, options.file)
    groups = options.package or (GROUPS if options.draw is None and not options.file else PACKAGES)
    mutants = {name: ones for name, ones in every.items() if name in groups}
    known = equivalents()
    keys = {one.key for ones in every.values() for one in ones}
    if not options.file and (stale := known.keys() - keys):
        print("equivalent.txt names what is not there any more:", *sorted(stale), sep="\n  ", file=sys.stderr)
        return 2
    operators = {name for name in options.operator or OPERATORS if name not in options.without}
    wanted = {
        name: [one for one in ones if one.key not in known and one.operator in operators]
        for name, ones in mutants.items()
    }
    again = noticed() if options.noticed else {}
    if again:
        picked = [one for ones in wanted.values() for one in ones if one.key in again]
        print(f"{len(picked)} of {len(again)} that were noticed are there still", flush=True)
    elif options.draw is not None:
        picked = drawn_lines(wanted, options.draw, options.seed)
        print(f"{len(picked)} lines of {sum(map(len, wanted.values()))} mutants; seed {options.seed}", flush=True)
    else:
        picked = chosen(wanted, options.sample, options.seed)
        print(f"{len(picked)} of {sum(map(len, wanted.values()))} mutants; seed {options.seed}", flush=True)
    if options.list:
        for one in picked:
            print(f"{one.path}:{one.line} {one.operator}", *diff(one), sep="\n")
        return 0
    done: list[Judged] = []
    # The working tree may change during the run.
    diffs = {one.key: list(diff(one)) for one in picked}
    # The copies come from a snapshot, so edits in the working tree do not affect the run.
    with tempfile.TemporaryDirectory(prefix="antiphon-snapshot-") as made:
        copy_tree(snapshot := Path(made))
        if options.draw is not None:
            judge_in = Likely(options.seconds).judge
        else:
            reached = (lambda one: again[one.key]) if again else recorded(picked, options.jobs, snapshot)

            def judge_in(tree: Path, mutant: Mutant) -> Judged:
                return judged(tree, mutant, reached(mutant))

        for number, result in enumerate(judge_all(picked, options.jobs, judge_in, snapshot), 1):
            done.append(result)
            mutant = result.mutant
            place = f"{mutant.path}:{mutant.line} {mutant.operator}"
            print(
                f"{number}/{len(picked)} {result.verdict:9} {result.seconds:4.0f} s  {place}  {result.by}", flush=True
            )
            if result.verdict in ("survived", "broken"):
                print(f"    {mutant.key}", *diffs[mutant.key], sep="\n", flush=True)
    print(f"\n{datetime.now(UTC):%Y-%m-%d}, {sum(one.seconds for one in done):.0f} s\n{table(done)}")
    counts = Counter(one.verdict for one in done)
    return int(100 * counts["killed"] < options.at_least * (counts["killed"] + counts["survived"]))


if __name__ == "__main__":
    sys.exit(main())
