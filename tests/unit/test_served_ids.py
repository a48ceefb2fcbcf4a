"""What a killed process was serving is found by the next one, once; of those that live, or ended well, nothing is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from antiphon.engine.ports.callers import Caller
from antiphon.observability.metrics import Metrics
from antiphon.observability.observation import Telemetry
from antiphon.observability.served_ids import ServedIds, take_lost
from tests.support.exchanges import make_exchange
from tests.support.file_room import file_room

_SERVES = """
import sys, time
from pathlib import Path
from antiphon.observability.served_ids import ServedIds
served = ServedIds()
served.open(Path(sys.argv[1]), Path(sys.argv[2]))
over = served.begin("req_over")
for name in sys.argv[3:]:
    served.begin(name)
served.end(over)
print("serving", flush=True)
time.sleep(600)
"""


def _serving(data: Path, folder: Path, *ids: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _SERVES, str(data), str(folder), *ids]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"serving\n"
    return process


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_what_a_killed_process_served_is_found_once(tmp_path: Path) -> None:
    shared, data, other = tmp_path / "shared", tmp_path / "data", tmp_path / "other"
    shared.mkdir()
    killed, lives = _serving(data, shared, "req_1", "x" * 200), _serving(data, shared, "req_3")
    elsewhere = _serving(other, shared, "req_4")
    try:
        assert take_lost(data, shared) == []
        _kill(killed)
        assert take_lost(other, shared) == []
        assert sorted(take_lost(data, shared)) == ["req_1", "x" * 128]
        assert take_lost(data, shared) == []
        _kill(lives)
        assert take_lost(data, shared) == ["req_3"]
    finally:
        for process in (killed, lives, elsewhere):
            _kill(process)
    assert take_lost(other, shared) == ["req_4"] and not list(shared.iterdir())


def test_who_ends_well_leaves_nothing(tmp_path: Path) -> None:
    served = ServedIds()
    served.open(tmp_path, tmp_path)
    served.begin("req_1")
    (table,) = tmp_path.iterdir()
    assert table.stat().st_mode & 0o777 == 0o600
    served.close()
    assert not list(tmp_path.iterdir())
    served.end(served.begin("req_2"))


def test_places_are_used_again_and_there_are_only_so_many(tmp_path: Path) -> None:
    served = ServedIds()
    served.open(tmp_path, tmp_path)
    places = [served.begin(f"req_{number}") for number in range(10_000)]
    taken = [place for place in places if place >= 0]
    assert len(set(taken)) == len(taken) < 10_000
    for place in places:
        served.end(place)
    assert [served.begin("again") for _ in taken].count(-1) == 0
    served.close()


@pytest.mark.parametrize("folder", ["absent", "full"])
def test_where_there_is_no_such_memory_nothing_fails(folder: str, tmp_path: Path) -> None:
    if folder == "full":
        (tmp_path / folder).mkdir(mode=0o500)
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
    served = ServedIds()
    served.open(tmp_path, tmp_path / folder)
    served.end(served.begin("req_1"))
    served.close()
    assert take_lost(tmp_path, tmp_path / folder) == []


def test_a_table_that_is_none_is_left_out(tmp_path: Path) -> None:
    served = ServedIds()
    served.open(tmp_path, tmp_path)
    (table,) = tmp_path.iterdir()
    served.close()
    for content in (b"", b"\xff", b"\xff" * 1000):
        table.write_bytes(content)
        assert all(len(one) <= 3 * 128 for one in take_lost(tmp_path, tmp_path))
    assert not table.exists()


def test_a_response_is_in_it_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    """But for one that another process runs again."""
    telemetry = Telemetry(Metrics())
    telemetry.served.open(tmp_path, tmp_path)
    (table,) = tmp_path.iterdir()
    for door, kept in (("http", True), ("websocket", True), ("background", False)):
        observed, name = telemetry.observe(door, f"req_{door}", Caller("owner")), f"req_{door}".encode()
        assert (name in table.read_bytes()) is kept
        observed.end(make_exchange(), "completed")
        observed.drop()
        dropped = telemetry.observe(door, "req_dropped", Caller("owner"))
        dropped.drop()
    whole = table.read_bytes()
    assert not any(whole[at] for at in range(0, len(whole), 129))
    telemetry.served.close()


def test_a_table_has_2048_places_and_an_id_128_bytes(tmp_path: Path) -> None:
    served = ServedIds()
    served.open(tmp_path, tmp_path)
    assert [served.begin(f"req_{number}") for number in range(2049)] == [*range(2048), -1]
    # What has no place takes none from another.
    served.end(-1)
    assert served.begin("late") == -1
    served.end(7)
    assert served.begin("é" * 64 + "x") == 7
    (table,) = tmp_path.iterdir()
    whole = table.read_bytes()
    assert len(whole) == 2048 * 129
    assert whole[7 * 129 : 8 * 129] == bytes([128]) + ("é" * 64).encode()
    served.close()
    served.close()
    assert served.begin("after the end") == -1


def test_memory_that_is_full_leaves_no_table_behind(tmp_path: Path) -> None:
    served = ServedIds()
    with file_room(1000):
        served.open(tmp_path, tmp_path)
    assert not list(tmp_path.iterdir()) and served.begin("req_1") == -1
    served.close()


def test_what_only_has_the_name_of_a_table_is_left_alone(tmp_path: Path) -> None:
    served, folder = ServedIds(), tmp_path / "shared"
    folder.mkdir()
    served.open(tmp_path, folder)
    (table,) = folder.iterdir()
    table.rename(tmp_path / "other")
    table.symlink_to(tmp_path / "other")
    served.begin("req_1")
    assert take_lost(tmp_path, folder) == [] and table.is_symlink()
    assert (tmp_path / "other").exists()
    served.close()
