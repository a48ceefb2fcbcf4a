"""The marks by which mutation testing learns which tests reach a mutant."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from lab.mutation.operators import find_mutants
from lab.mutation.probes import marked
from lab.mutation.run import PACKAGES, TOP, all_mutants, drawn_lines, group_of

_SOURCE = '''"""A module."""

LIMIT = 3 - 1


def first(one, two):
    """Says something."""
    if one > 1:
        return 1
    elif two > 2:
        return 2
    while two < 3:
        two += 4
    return [each for each in range(two) if each > 5]


class Other:
    @property
    def second(self):
        match self:
            case 6 if self > 6:
                return 6
'''


@pytest.mark.parametrize(
    ("changed", "before"),
    [
        ("one > 1", ["if one > 1:"]),
        ("two > 2", ["if one > 1:"]),
        ("two < 3", ["while two < 3:"]),
        ("two += 4", ["two += 4"]),
        ("each > 5", ["return [each"]),
        ("self > 6", ["match self:"]),
        # It runs on import, which is no test's: whoever enters a function of the module counts.
        ("3 - 1", ["if one > 1:", "match self:"]),
    ],
)
def test_a_mark_stands_before_the_statement_that_changes(changed: str, before: list[str]) -> None:
    mutant = next(one for one in find_mutants("src/antiphon/x.py", _SOURCE) if changed in one.was)
    source = marked(_SOURCE, [(7, mutant)])
    compile(source, "x.py", "exec")
    marks = re.findall(r"\.passed\(7\)\n *except ImportError:\n *pass\n *(.*)$", source, re.MULTILINE)
    assert len(marks) == len(before)
    assert all(line.startswith(start) for line, start in zip(marks, before, strict=True))


@pytest.mark.full
def test_a_draw_is_of_lines_of_all_packages_and_another_with_another_seed() -> None:
    mutants = all_mutants(PACKAGES, [])
    drawn = drawn_lines(mutants, 40, 1)
    places = [(one.path, one.line) for one in drawn]
    assert len(set(places)) == 40 and places == [(one.path, one.line) for one in drawn_lines(mutants, 40, 1)]
    lines = {name: len({(one.path, one.line) for one in ones}) for name, ones in mutants.items()}
    shares = {name: 40 * count / sum(lines.values()) for name, count in lines.items()}
    found = Counter(group_of(one.path) for one in drawn)
    assert all(found[name] == 1 for name, share in shares.items() if share < 1)
    # The packages with less than one line take their lines from the others.
    most = sum(1 - share for share in shares.values() if share < 1)
    assert all(share - most - 1 < found[name] < share + 1 for name, share in shares.items() if share >= 1)
    assert {TOP, "types"} < {name for name, share in shares.items() if share < 1}
    assert len({(one.path, one.line) for one in drawn_lines(mutants, 40, 2)} & set(places)) < 10
