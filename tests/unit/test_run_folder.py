"""The folder of a run: short, private, and gone afterwards, also after a kill."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from antiphon.errors import ConfigError
from antiphon.supervisor.run_folder import run_folder, write_private
from tests.support.file_room import file_room


@pytest.fixture
def short() -> Iterator[Path]:
    """What stands in for /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="ap-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_in_the_data_folder_and_private(short: Path) -> None:
    with run_folder(short) as folder:
        assert folder.parent == short / "run"
        write_private(folder / "file", "text")
        assert (_mode(short / "run"), _mode(folder), _mode(folder / "file")) == (0o700, 0o700, 0o600)
    assert not folder.exists()


def test_there_is_room_for_the_names_of_envoys_hot_restart() -> None:
    """Envoy 1.40 adds at most `_udp_parent_` and up to 20 digits: its own base id may be any 64-bit number."""
    for length in range(30, 80):
        data = Path("/tmp") / ("d" * (length - len("/tmp/") - len("/run")))
        try:
            data.mkdir()
            with run_folder(data) as folder:
                assert len(os.fsencode(folder / f"hot_udp_parent_{2**64 - 1}")) <= 107
        finally:
            shutil.rmtree(data)


def test_a_file_that_says_so_already_is_not_written(short: Path) -> None:
    """A child is started again on a full disk."""
    with run_folder(short) as folder:
        write_private(folder / "file", "text")
        with file_room(0):
            write_private(folder / "file", "text")
            with pytest.raises(OSError, match="File too large"):
                write_private(folder / "file", "other")
        assert (folder / "file").read_text() == "text"


def test_a_folder_without_room_is_said_in_a_sentence(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(ConfigError, match=r"Antiphon cannot write to .*: No space left"), run_folder(short):
        pass


def test_a_long_data_path_leads_to_a_short_one(short: Path) -> None:
    with run_folder(short / ("d" * 100), short=short) as folder:
        assert folder.parent == short / f"antiphon-{os.getuid()}"
        assert _mode(folder.parent) == 0o700
        assert len(os.fsencode(folder / "sidecar-255.grpc.sock")) < 104
    assert not folder.exists()


@pytest.mark.parametrize("name", ["", "d" * 100], ids=["in the data folder", "elsewhere"])
def test_what_a_killed_run_left_is_cleared_and_the_living_are_not(short: Path, name: str) -> None:
    data = short / name
    with run_folder(data, short=short) as living:
        left = Path(tempfile.mkdtemp(prefix="antiphon-", dir=living.parent))
        (left / "lock").touch()
        (left / "envoy.yaml").touch()
        forgotten: list[Path] = []
        with run_folder(data, forgotten.append, short=short) as another:
            assert forgotten == [left]
            assert living.exists() and another.exists()
            assert not left.exists()
        assert living.exists()


def test_a_folder_of_somebody_else_is_not_used(short: Path) -> None:
    """Who may write there could put sockets of their own in our place."""
    open_to_all = short / f"antiphon-{os.getuid()}"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with (
        pytest.raises(ConfigError, match="must be a folder to which only this user has access"),
        run_folder(short / ("d" * 100), short=short),
    ):
        pass
    open_to_all.rmdir()
    open_to_all.symlink_to(short)
    with (
        pytest.raises(ConfigError, match="must be a folder to which only this user has access"),
        run_folder(short / ("d" * 100), short=short),
    ):
        pass


def _many(data: Path) -> bool:
    for _ in range(30):
        with run_folder(data) as folder:
            (folder / "file").touch()
            if not (folder / "lock").exists():
                return False
    return True


def test_runs_that_start_and_stop_together_do_not_clear_each_other_away(short: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        assert pool.map(_many, [short] * 4) == [True] * 4
