"""Which of two builds a process runs: compiled modules beside their sources, or the sources, by a variable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import antiphon
from antiphon.commands.child_settings import plain_environment
from antiphon.config.settings import load_settings
from antiphon.pure import VARIABLE

# An extension module stands for the compiled ones: it is found before the source of the same name.
_PROGRAM = """
import antiphon
from antiphon.pure import compiled
import antiphon.ids, antiphon.translation.sse
print(compiled(), *(module.__file__.rpartition(".")[2] for module in (antiphon.ids, antiphon.translation.sse)))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with both: `ids` and `sse` as compiled modules, whose extension is that of another program's."""
    from importlib.machinery import EXTENSION_SUFFIXES

    shutil.copytree(
        Path(antiphon.__file__).parent, tmp_path / "antiphon", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    made = tmp_path / "made.c"
    for name in ("ids", "sse"):
        made.write_text(
            "#include <Python.h>\n"
            f'static struct PyModuleDef def = {{PyModuleDef_HEAD_INIT, "{name}"}};\n'
            f"PyMODINIT_FUNC PyInit_{name}(void) {{ return PyModule_Create(&def); }}\n"
        )
        folder = tmp_path / "antiphon" / ("translation" if name == "sse" else "")
        _compile(made, folder / f"{name}{EXTENSION_SUFFIXES[0]}")
    return tmp_path


def _compile(source: Path, target: Path) -> None:
    import sysconfig

    compiler = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
    headers = Path(sysconfig.get_path("include"))
    if compiler is None or not (headers / "Python.h").exists():
        pytest.skip("no C compiler, or no headers of this Python")
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{headers}", source, "-o", target], check=True)


@pytest.mark.parametrize(
    ("variable", "said"), [("", "True so so"), ("0", "True so so"), ("1", "False py py")], ids=["unset", "0", "1"]
)
def test_the_variable_says_which_build_runs(installed: Path, variable: str, said: str) -> None:
    environ = {**os.environ, "PYTHONPATH": str(installed), VARIABLE: variable}
    shown = subprocess.run([sys.executable, "-c", _PROGRAM], env=environ, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == said


def test_children_run_the_build_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert VARIABLE not in plain_environment()
    monkeypatch.setenv(VARIABLE, "1")
    assert plain_environment()[VARIABLE] == "1"


def test_it_is_no_setting() -> None:
    load_settings({}, {VARIABLE: "1"})
