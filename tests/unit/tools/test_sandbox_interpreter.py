"""The interpreter that runs code in the sandbox, in this process and with all rights: what it shows, keeps and hides.

What it gives up before is in `test_confinement.py`, what its room is in `test_sandbox_room.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from antiphon.tools.code_interpreter.interpreter import Interpreter

PNG = "b'\\x89PNG'"
DRAWN = f"class P:\n  def _repr_png_(self): return {PNG}\nP()"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Interpreter:
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    for name in ("files", "pictures"):
        (tmp_path / name).mkdir()
    return Interpreter(str(tmp_path / "files"), str(tmp_path / "pictures"))


@pytest.fixture
def run(made: Interpreter, capsys: pytest.CaptureFixture[str]) -> Callable[[str], tuple[str, str, dict[str, Any]]]:
    """What is printed, what is explained, and the answer."""

    def go(code: str) -> tuple[str, str, dict[str, Any]]:
        answer = made.run(code)
        assert not made.running
        printed = capsys.readouterr()
        return printed.out, printed.err, answer

    return go


_Run = Callable[[str], tuple[str, str, dict[str, Any]]]
FINE: dict[str, Any] = {"failed": False, "pictures": []}


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("1 + 1", "2\n"),
        ("x = 1", ""),
        ("None", ""),
        ("x = 5\nx", "5\n"),
        ("print('a')\n'b'", "a\n'b'\n"),
        ("'a'\nx = 1", ""),
        ("", ""),
        ("# nothing", ""),
        ("'/mnt/data'.count('/mnt')", "0\n"),
        ("'/mnt/database'", "'/mnt/database'\n"),
        ("b'/mnt/data'", "b'/mnt/data'\n"),
    ],
)
def test_the_value_of_a_last_expression_is_shown(run: _Run, code: str, printed: str) -> None:
    assert run(code) == (printed, "", FINE)


def test_variables_stay_and_the_last_value_has_a_name(run: _Run) -> None:
    assert run("x = 4") == ("", "", FINE)
    assert run("x + 1") == ("5\n", "", FINE) and run("_ * 2") == ("10\n", "", FINE)
    assert run("None; __name__") == ("'__main__'\n", "", FINE)
    assert run("None") == ("", "", FINE) and run("_") == ("", "", FINE)


def test_texts_that_name_the_folder_mean_it(run: _Run, tmp_path: Path) -> None:
    files = str(tmp_path / "files")
    assert run("'/mnt/data'")[0] == f"{files!r}\n" and run("'/mnt/data/a.txt'")[0] == f"{files + '/a.txt'!r}\n"
    # What follows a value in a text of parts is a text that begins so.
    assert run("print(f'{1}/mnt/data')")[0] == f"1{files}\n"


def test_an_error_is_explained_without_our_frames(run: _Run, made: Interpreter) -> None:
    printed, told, answer = run("x = 1\ndef f():\n    return 1 / 0\nf()")
    assert (printed, answer) == ("", {"failed": True, "pictures": []})
    assert told.startswith("Traceback (most recent call last):\n") and told.endswith("division by zero\n")
    assert 'File "<code 1>", line 4, in <module>' in told and "return 1 / 0" in told and "interpreter.py" not in told
    assert run("1 +")[1].count("<code 2>") == 1
    assert run("x")[0] == "1\n"


def test_only_the_innermost_frames_are_told(run: _Run) -> None:
    told = run("\n".join(f"def f{n}(): f{n + 1}()" for n in range(30)) + "\ndef f30(): 1 / 0\nf0()")[1]
    frames = [line for line in told.split("\n") if line.startswith("  File")]
    assert len(frames) == 20 and frames[-1].endswith("in f30") and frames[0].endswith("in f11")


@pytest.mark.parametrize(
    ("code", "told", "failed"),
    [
        ("raise SystemExit", "", True),
        ("raise SystemExit(0)", "", True),
        ("raise SystemExit(3)", "SystemExit: 3\n", True),
        ("raise SystemExit('bye')", "SystemExit: bye\n", True),
    ],
)
def test_leaving_is_said_when_it_says_something(run: _Run, code: str, told: str, failed: bool) -> None:
    assert run(code) == ("", told, {"failed": failed, "pictures": []})


def test_where_things_lie_is_not_told(run: _Run, tmp_path: Path) -> None:
    told = run(f"raise ValueError({str(tmp_path / 'files' / 'a')!r}, {str(tmp_path / 'pictures' / 'b')!r})")[1]
    assert "ValueError: ('/mnt/data/a', '/tmp/b')" in told
    told = run("import json; json.loads('{')")[1]
    assert 'File "json/__init__.py"' in told and sys.base_prefix not in told


# Pictures


def test_a_value_that_draws_itself_is_a_picture(run: _Run, tmp_path: Path) -> None:
    assert run(DRAWN) == ("", "", {"failed": False, "pictures": ["picture-1-0.png"]})
    assert (tmp_path / "pictures/picture-1-0.png").read_bytes() == b"\x89PNG"
    for drawn in ("'text'", "None"):
        answer = run(f"class Q:\n  _repr_png_ = lambda self: {drawn}\n  def __repr__(self): return 'Q'\nQ()")
        assert answer == ("Q\n", "", FINE)
    assert run("class R:\n  _repr_png_ = 5\n  def __repr__(self): return 'R'\nR()") == ("R\n", "", FINE)


class _Plots:
    """As much of pyplot as is asked for."""

    def __init__(self, figures: int, *, fails: bool = False) -> None:
        self.open = list(range(1, figures + 1))
        self.fails = fails
        self.closed: list[str] = []

    def get_fignums(self) -> list[int]:
        return self.open

    def figure(self, number: int) -> Any:
        def save(path: str, *, format: str, bbox_inches: str) -> None:
            if self.fails:
                raise ValueError("it cannot be drawn")
            assert (format, bbox_inches) == ("png", "tight")
            Path(path).write_text(str(number))

        return SimpleNamespace(savefig=save)

    def close(self, which: str) -> None:
        self.closed.append(which)


@pytest.mark.parametrize(("figures", "shown"), [(0, 0), (1, 1), (9, 9), (10, 10), (11, 10)])
def test_open_figures_are_pictures(
    run: _Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: int, shown: int
) -> None:
    plots = _Plots(figures)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", plots)
    run("1")
    assert run("x = 1") == ("", "", {"failed": False, "pictures": [f"picture-2-{n}.png" for n in range(shown)]})
    assert plots.closed == ["all", "all"]
    if shown:
        assert (tmp_path / f"pictures/picture-2-{shown - 1}.png").read_text() == str(shown)
    # With a value that draws itself there are no more than ten either; after an error they are pictures too.
    assert len(run(DRAWN)[2]["pictures"]) == min(10, shown + 1)
    assert len(run("1 / 0")[2]["pictures"]) == shown


def test_a_figure_that_cannot_be_drawn_is_explained(run: _Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", _Plots(1, fails=True))
    printed, told, answer = run("5")
    assert printed == "5\n" and told.endswith("ValueError: it cannot be drawn\n") and answer == FINE


def test_while_code_runs_it_says_so(made: Interpreter) -> None:
    """Then alone an interrupt is the code's."""
    seen: list[bool] = []
    sys.modules["__main__"].__dict__["look"] = lambda: seen.append(made.running)
    for code in ("look()\nlook()", "look()\n1 / 0", "class P:\n  def __repr__(self): look(); return ''\nP()"):
        made.run(code)
        assert seen and all(seen) and not made.running
        seen.clear()
