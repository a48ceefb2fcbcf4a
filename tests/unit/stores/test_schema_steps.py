"""Numbered steps: what is read of a folder, who can serve with them, what can be undone."""

from __future__ import annotations

from pathlib import Path

import pytest

from antiphon.config.state import StateSettings
from antiphon.errors import ConfigError, StoreError
from antiphon.stores.choice import backend_of
from antiphon.stores.compatibility import AppliedStep, SchemaStep, create_step, missing_steps, oldest_schema, read_steps

STEPS = (
    SchemaStep(1, "0001_a.sql", "a"),
    SchemaStep(2, "0002_b.sql", "-- serves: 1\nb"),
    SchemaStep(3, "0003_c.sql", "c"),
)


def had(*steps: SchemaStep) -> list[AppliedStep]:
    return [AppliedStep(step.version, step.name, step.sha256, step.serves) for step in steps]


def write(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name.replace('__', '.')}.sql").write_text(text)
    return folder


def test_steps_are_read_in_order_each_with_what_undoes_it(tmp_path: Path) -> None:
    texts = {"0002_b": "-- serves: 1\nB", "0001_a": "A", "0001_a__down": "undo A"}
    first, second = read_steps(write(tmp_path, **texts))
    assert (first.name, first.down, first.serves) == ("0001_a.sql", "undo A", 1)
    assert (second.version, second.down, second.serves) == (2, "", 1)


@pytest.mark.parametrize("names", [[], ["0002_b"], ["0001_a", "0003_c"], ["0001_a", "0001_b"]])
def test_a_folder_with_a_gap_is_refused(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(StoreError, match="incomplete"):
        read_steps(write(tmp_path, **dict.fromkeys(names, "x")))


@pytest.mark.parametrize(
    ("applied", "known", "missing"),
    [
        (had(), STEPS, STEPS),
        (had(*STEPS[:1]), STEPS, STEPS[1:]),
        (had(*STEPS), STEPS, ()),
        # The second only adds: who knows the first can serve.
        (had(*STEPS[:2]), STEPS[:1], ()),
    ],
)
def test_what_is_missing(
    applied: list[AppliedStep], known: tuple[SchemaStep, ...], missing: tuple[SchemaStep, ...]
) -> None:
    assert tuple(missing_steps(applied, known)) == missing


@pytest.mark.parametrize(
    ("applied", "known", "words"),
    [
        (had(*STEPS), STEPS[:2], r"newer.*0003_c.*schema 3.*knows only schema 2"),
        # One of the newer ones suffices.
        (had(*STEPS), STEPS[:1], "newer"),
        (had(SchemaStep(1, "0001_a.sql", "other")), STEPS, "differs from this version's"),
        (had(SchemaStep(2, "0002_b.sql", "b")), STEPS, "differs from this version's"),
    ],
)
def test_what_cannot_be_served(applied: list[AppliedStep], known: tuple[SchemaStep, ...], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        missing_steps(applied, known)


def test_the_oldest_build_is_what_the_strictest_step_says() -> None:
    assert [oldest_schema(had(*STEPS[:count])) for count in range(4)] == [0, 1, 1, 3]


async def test_an_installed_package_takes_no_new_step(tmp_path: Path) -> None:
    class Installed:
        folder = tmp_path / "site-packages/antiphon/stores/sqlite/migrations"
        steps = STEPS

    with pytest.raises(ConfigError, match="source tree"):
        create_step(Installed(), "more")  # type: ignore[arg-type]
    Installed.folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    with pytest.raises(ConfigError, match="not a valid name"):
        create_step(Installed(), "More")  # type: ignore[arg-type]
    # The tree's root is what holds src/antiphon/stores/<backend>/<folder>.
    Installed.folder = tmp_path / "src/antiphon/stores/sqlite/migrations"
    Installed.folder.mkdir(parents=True)
    made = create_step(Installed(), "more")  # type: ignore[arg-type]
    assert made.name == "0004_more.sql" and made.read_text().startswith("-- serves: 4\n")


async def test_what_is_in_memory_has_no_schema(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="memory"):
        async with backend_of(StateSettings.model_validate({"url": "memory:"}), tmp_path).open_schemas(seconds=1):
            pass
