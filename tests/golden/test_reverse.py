"""Reverse goldens: for the output OpenAI really sent, our answer has the same grammar, keys, kinds and echoes.

Lives here: the check against the list of known differences. Not here: the comparison (`reverse.py`), the list
(`differences.py`).
"""

from __future__ import annotations

import json

import pytest

from tests.golden.differences import DIFFERENCES
from tests.golden.reverse import Original, compare, originals

_KNOWN = {line for lines in DIFFERENCES.values() for line in lines}
_ANSWERS = [original for original in originals() if original.status == 200]
_REFUSALS = [original for original in originals() if original.status != 200]


@pytest.mark.parametrize("original", _ANSWERS, ids=lambda original: original.name)
def test_our_answer_is_openais_but_for_the_listed_differences(original: Original) -> None:
    assert compare(original) - _KNOWN == set()


def test_every_listed_difference_happens() -> None:
    found = {line for original in _ANSWERS for line in compare(original)}
    assert _KNOWN - found == set(), "these are equal by now: take them off the list"


def test_no_difference_is_listed_twice() -> None:
    assert sum(len(lines) for lines in DIFFERENCES.values()) == len(_KNOWN)


@pytest.mark.parametrize("original", _REFUSALS, ids=lambda original: original.name)
def test_errors_have_the_keys_of_ours(original: Original) -> None:
    """OpenAI's own refusals have the four keys that ours have (Azure and others add some)."""
    assert {"message", "type", "param", "code"} <= set(json.loads(original.body)["error"])


def test_the_comparison_sees_what_is_wrong() -> None:
    """The judge itself: a missing key, another kind, another order and another value are found."""
    original = next(one for one in _ANSWERS if one.name.endswith("streaming-grammar-parallel-tool-calls"))
    body = original.body.replace('"parallel_tool_calls":true', '"parallel_tool_calls":"yes"')
    body = body.replace(
        '"status":"completed","type":"function_call"', '"sort":1,"status":"done","type":"function_call"'
    )
    body = body.replace("event: response.function_call_arguments.done", "event: x", 1)
    changed = Original(original.name, original.request, 200, True, body, True)
    found = compare(changed) - _KNOWN
    assert "response.parallel_tool_calls: bool, not string" in found
    assert "function_call done.sort: not sent" in found
    assert "function_call done.status: another value" in found
