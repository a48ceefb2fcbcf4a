"""The PostgreSQL of the tests, copied to where another user can reach it, is whole: it starts where it lies."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.postgres import copied_programs

# Behaviour of servers and connections, each with a database: the contracts are the quick part.
pytestmark = pytest.mark.full


def test_a_copy_has_all_that_its_programs_need(tmp_path: Path) -> None:
    programs = copied_programs(tmp_path)
    for name in ("initdb", "postgres", "pg_isready", "pg_basebackup", "pg_ctl"):
        done = subprocess.run([programs / name, "--version"], capture_output=True, text=True, env={}, check=False)
        assert done.stdout.startswith(name), (name, done.stderr)
    assert programs.is_relative_to(tmp_path)
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in programs.iterdir())
