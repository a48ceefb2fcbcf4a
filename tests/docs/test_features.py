"""The page of OpenAI's features names settings that exist."""

import re
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "docs/reference"


def test_the_settings_of_the_features_exist() -> None:
    page = (REFERENCE / "features.md").read_text()
    known = set(re.findall(r"^\| `([a-z_.]+)`", (REFERENCE / "configuration.md").read_text(), re.MULTILINE))
    rows = [row for row in page.splitlines() if row.startswith("| ") and row.count("|") == 4]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+\.[a-z_]+)`", row.split("|")[3])}
    assert {"web_search.provider", "code_interpreter.sandbox", "embeddings.url"} <= named
    assert named <= known
