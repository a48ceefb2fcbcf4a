"""Every value that `antiphon envoy-config` prints, in each of its forms, is the one of `printed.tsv`."""

from __future__ import annotations

import pytest

from tests.unit.envoy.printed import TABLE, table

# Ten documents; quicker tests of each form say what its values are for.
pytestmark = pytest.mark.full


def test_every_printed_value_is_as_often_there_as_in_the_table() -> None:
    expected, found = TABLE.read_text().splitlines(), table()
    assert expected[0] == found[0]
    # `python -m tests.unit.envoy.printed` writes the table anew; then its diff shows the change.
    assert {"gone": sorted({*expected} - {*found}), "new": sorted({*found} - {*expected})} == {"gone": [], "new": []}
