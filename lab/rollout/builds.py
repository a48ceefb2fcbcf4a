"""Makes builds of Antiphon, each a wheel in a separate environment: the current build, and two possible successors.

Lives here: making the builds. Not here: running them (`replicas.py`), their order (`course.py`).

The schema of the first successor only adds. This build adds a column and an index to a table that every turn writes,
and a column to the table of jobs. The second successor removes the first of these columns, which the first successor
does not need. The second successor also writes job payloads that no older build can read. Otherwise the builds differ
only in the version.

Each environment has a separate `antiphon`, and uses the dependencies of the running interpreter.

Invariant: this module never writes to the source tree.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from antiphon.stores.postgres.migrate import packaged_steps

_ROOT = Path(__file__).parents[2]
_SECONDS = 300
_MIGRATIONS = "src/antiphon/stores/postgres/migrations"

_EXPAND = """-- serves: {serves}
ALTER TABLE responses ADD COLUMN rollout_note text;
CREATE INDEX responses_rollout_note ON responses (rollout_note) WHERE rollout_note IS NOT NULL;
"""
_EXPAND_JOBS = """-- serves: {serves}
ALTER TABLE jobs ADD COLUMN rollout_note text;
"""
_CONTRACT = """-- serves: {serves}
DROP INDEX responses_rollout_note;
ALTER TABLE responses DROP COLUMN rollout_note;
"""


@dataclass(frozen=True)
class Build:
    """One build. `python` is the interpreter of its environment, and `schema` the number of its schema steps."""

    name: str
    python: Path
    schema: int

    @property
    def command(self) -> tuple[str, ...]:
        """The first arguments of the build's command line."""
        # `-P` keeps the current folder out of Python's module path.
        return (str(self.python), "-P", "-m", "antiphon")


HERE = Build("this one", Path(sys.executable), len(packaged_steps()))
"""The source tree itself, as the tests run it."""


def make_builds(folder: Path) -> tuple[Build, Build, Build]:
    """The current build and its two successors. Making them takes half a minute."""
    folder.mkdir(parents=True, exist_ok=True)
    before = HERE.schema
    old = _build("old", _copy(folder / "old-source"), folder, before)

    tree = _copy(folder / "new-1-source")
    _set_version(tree, "1000.1")
    _add_step(tree, before + 1, "rollout_note", _EXPAND.format(serves=before))
    _add_step(tree, before + 2, "rollout_jobs", _EXPAND_JOBS.format(serves=before))
    first = _build("new 1", tree, folder, before + 2)

    tree = _copy(folder / "new-2-source", tree)
    _set_version(tree, "1000.2")
    _add_step(tree, before + 3, "rollout_note_gone", _CONTRACT.format(serves=first.schema))
    _replace(
        tree / "src/antiphon/engine/exchange/queued_request.py", r"^(PAYLOADS: .*) = \((\d+),\)$", r"\1 = (\2, 1000)"
    )
    return old, first, _build("new 2", tree, folder, before + 3)


def _copy(folder: Path, tree: Path = _ROOT) -> Path:
    """Copy the files that a wheel contains. Returns the copy's folder."""
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(tree / name, folder)
    shutil.copytree(
        tree / "src" / "antiphon", folder / "src" / "antiphon", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def _set_version(tree: Path, version: str) -> None:
    _replace(tree / "src/antiphon/__init__.py", r'^__version__ = "[^"]+"$', f'__version__ = "{version}"')


def _add_step(tree: Path, number: int, name: str, sql: str) -> None:
    (tree / _MIGRATIONS / f"{number:04}_{name}.sql").write_text(sql)


def _replace(file: Path, pattern: str, text: str) -> None:
    changed, times = re.subn(pattern, text, file.read_text(), flags=re.MULTILINE)
    assert times == 1, f"{file.name} has not one line like {pattern}"
    file.write_text(changed)


def _build(name: str, tree: Path, folder: Path, schema: int) -> Build:
    """Build a wheel from a source tree and install it into a new environment."""
    place = folder / name.replace(" ", "-")
    _run(sys.executable, "-m", "venv", "--without-pip", str(place))
    packages = next(place.glob("lib/python*/site-packages"))
    # The dependencies are a plain folder on the path, so Python does not read the `.pth` file that adds the source
    # tree.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps")
    wheels = folder / f"{place.name}-wheel"
    _run(sys.executable, "-m", "pip", "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(wheels), str(tree))
    (wheel,) = wheels.glob("antiphon-*.whl")
    _run(sys.executable, "-m", "pip", "--python", str(python), "install", *quiet, "--no-index", str(wheel))
    found = _run(str(python), "-P", "-c", "import antiphon; print(antiphon.__file__)").strip()
    assert Path(found).is_relative_to(place), f"{name} would run {found}"
    return Build(name, python, schema)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd="/")
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout
