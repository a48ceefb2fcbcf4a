"""The progress line of long commands: on a terminal, and nowhere else."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from antiphon.commands.terminal import progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_with_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    with progress("backup", unit="bytes", out=out, width=100, interval=0) as shown:
        shown.report(500_000, 2_000_000)
        shown.report(1_000_000, 2_000_000)
    line = out.getvalue()
    assert "backup" in line and "1.50M/2.00M" in line and "75%" in line


def test_rows_have_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = _Terminal()
    with progress("export", out=out, width=100, interval=0) as shown:
        shown.report(3, None)
        shown.report(4, None)
    assert "7 rows" in out.getvalue()


@pytest.mark.parametrize(("out", "quiet"), [(io.StringIO(), False), (_Terminal(), True)])
def test_pipes_and_json_get_nothing(out: io.StringIO, quiet: bool) -> None:
    with progress("move", out=out, quiet=quiet) as shown:
        shown.report(1, 2)
    assert out.getvalue() == ""


def test_messages_are_part_of_the_line_or_lines() -> None:
    out, pipe = _Terminal(), io.StringIO()
    with progress("move", out=out, width=100, interval=0) as shown:
        shown.say("files: begins")
    with progress("move", out=pipe) as shown:
        shown.say("files: begins")
    assert "move, files: begins" in out.getvalue() and "…" not in out.getvalue()
    assert pipe.getvalue() == "… files: begins\n"


def test_tqdm_is_not_imported_before_it_draws() -> None:
    code = (
        "import io, sys, antiphon.commands.terminal as p\n"
        "with p.progress('x', out=io.StringIO()) as shown: shown.report(1, 2)\n"
        "print('tqdm' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == "False"
