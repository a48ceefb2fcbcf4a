"""Every recording gives exactly the committed events. `scripts/lab golden` writes them anew and shows what changed."""

from __future__ import annotations

import pytest

from tests.support.goldens import EXPECTED, expected_path, render
from tests.support.recordings import Recording, all_recordings


@pytest.mark.parametrize("recording", all_recordings(), ids=lambda recording: recording.name)
def test_golden(recording: Recording) -> None:
    assert render(recording) == expected_path(recording).read_text(), "run scripts/lab golden and look at the change"


def test_every_golden_has_its_recording() -> None:
    assert set(EXPECTED.rglob("*.txt")) == {expected_path(recording) for recording in all_recordings()}
