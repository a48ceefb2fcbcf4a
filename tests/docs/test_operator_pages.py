"""The operator's pages: their settings are accepted, and what they quote of the source is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import yaml

from antiphon.config.settings import load_settings
from antiphon.stores.audit import ChangeAction, ReadAction

_ROOT = Path(__file__).parents[2]
_PAGES = _ROOT / "docs" / "how-to"
_SHORTEST = 8


def _blocks(page: str) -> Iterator[str]:
    """The settings in a page, whole files each. What configures Envoy, or is a pod, is none."""
    for indent, text in re.findall(r"^( *)```yaml\n(.*?)^ *```", (_PAGES / page).read_text(), re.MULTILINE | re.DOTALL):
        block = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
        if "@type" not in block and not block.startswith(("spec:", "route:")):
            yield block


@pytest.mark.parametrize("page", ["keys-and-owners.md", "monitoring.md", "quotas.md", "scaling.md", "security.md"])
def test_settings_of_a_page_are_accepted(page: str, tmp_path: Path) -> None:
    blocks = list(_blocks(page))
    assert blocks
    for block in blocks:
        file = tmp_path / "settings.yaml"
        file.write_text(block)
        assert yaml.safe_load(block)
        load_settings(file=file)


@cache
def _texts() -> str:
    """Every text in the source, whatever pieces it is written in."""
    nodes = (
        node for file in (_ROOT / "src" / "antiphon").rglob("*.py") for node in ast.walk(ast.parse(file.read_text()))
    )
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _symptoms() -> list[str]:
    """The first cells of the tables in the page of symptoms."""
    rows = re.findall(r"^\| (.+?) \|", (_PAGES / "troubleshooting.md").read_text(), re.MULTILINE)
    return [row for row in rows if row != "Symptom" and not set(row) <= set("- ")]


def test_the_page_has_symptoms() -> None:
    assert len(_symptoms()) >= 25


@pytest.mark.parametrize("symptom", _symptoms())
def test_a_symptom_quotes_what_the_source_says(symptom: str) -> None:
    """Its codes are the source's, and its messages, in quotation marks, as well but for what stands for `…`."""
    for code in re.findall(r"`([a-z]+(?:_[a-z]+)+)`", symptom):
        assert re.search(rf"\b{code}\b", _texts()), code
    for message in re.findall(r'"([^"]+)"', symptom):
        for part in message.split("…"):
            assert part.strip(" .") in _texts() or len(part) < _SHORTEST, part


def _audit_table(heading: str) -> dict[str, set[str]]:
    """The actions of a table of the page about keys, each with its actors."""
    text = (_PAGES / "keys-and-owners.md").read_text()
    rows = re.findall(r"^\| (`.+?`) \| (`.+?`) \|", text.partition(heading)[2].partition("\n\n- ")[0], re.MULTILINE)
    return {
        action: set(re.findall(r"`([^`]+)`", actors))
        for actions, actors in rows
        for action in re.findall(r"`([^`]+)`", actions)
    }


def test_the_page_lists_every_action_of_the_audit() -> None:
    changes = _audit_table("These actions change keys or data.")
    reads = _audit_table("These actions read data:")
    assert set(reads) == set(get_args(ReadAction)) and all(one.startswith("read ") for one in reads)
    assert set(changes) - set(reads) == set(get_args(ChangeAction))
    assert not any(one.startswith("read ") for one in get_args(ChangeAction))
    actors = {"cli:NAME", "admin-api", "console", "server"}
    assert set().union(*changes.values(), *reads.values()) == actors


@pytest.mark.parametrize("action", [*get_args(ChangeAction), *get_args(ReadAction)])
def test_the_source_records_every_action_of_the_audit(action: str) -> None:
    assert _texts().splitlines().count(action) >= 2, "the list itself and the code that records the action"
