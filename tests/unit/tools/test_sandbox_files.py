"""Files of a machine seen from outside: what is counted, listed, carried and cleared, and that nothing stays open."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter import disk, local, machine
from antiphon.tools.code_interpreter.disk import DiskUse, SandboxFailed
from antiphon.tools.code_interpreter.local import LocalSandbox
from antiphon.tools.code_interpreter.machine import Machine
from antiphon.tools.code_interpreter.machine_files import MachineFiles
from antiphon.tools.code_interpreter.starting import Room, command, environment, file_bytes, user_of

LIMITS = CodeInterpreterSettings(disk_bytes=64 << 20, files=5, output_bytes=1024, picture_bytes=1024, threads=3)
# Whom files can be given to: root can give them to anybody, everybody else to nobody but themselves.
SOMEBODY = 7 if os.geteuid() == 0 else os.geteuid()


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    def opened() -> set[str]:
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                path = os.readlink(f"/proc/self/fd/{name}")
            except OSError:
                continue
            found |= {f"{name} {path}"} if "/pytest-" in path else set()
        return found

    before = opened()
    yield
    assert opened() == before


def _tree(folder: Path, *paths: str, data: bytes = b"x") -> None:
    for path in paths:
        at = folder / path
        if path.endswith("/"):
            at.mkdir(parents=True, exist_ok=True)
        else:
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(data)


def _deep(folder: Path, depth: int) -> Path:
    at = folder.joinpath(*["d"] * depth)
    at.mkdir(parents=True)
    return at


# Counted and listed


def test_what_there_is_is_added_up(tmp_path: Path) -> None:
    _tree(tmp_path, "a", "b/c", "b/d/", data=bytes(5_000))
    blocks = sum(one.stat().st_blocks * 512 for one in (tmp_path / "a", tmp_path / "b/c"))
    folders = sum(one.stat().st_blocks * 512 for one in (tmp_path / "b", tmp_path / "b/d"))
    assert disk.use_of(tmp_path, 9) == DiskUse(blocks + folders, 4)
    # Each file with at least so many bytes; a folder is no file.
    assert disk.use_of(tmp_path, 9, 1 << 20) == DiskUse((2 << 20) + folders, 4)
    assert [disk.use_of(tmp_path, limit).count for limit in (0, 2, 3, 4)] == [1, 3, 4, 4]
    assert disk.use_of(tmp_path / "none", 9) == DiskUse()
    opened = disk.open_folder(tmp_path)
    assert disk.use_of(opened, 9).count == 4 and not os.get_inheritable(opened)
    os.close(opened)


@pytest.mark.parametrize(("depth", "deep"), [(31, False), (32, False), (33, True), (34, True)])
def test_folders_without_end_are_noticed(tmp_path: Path, depth: int, deep: bool) -> None:
    (_deep(tmp_path, depth) / "file").touch()
    assert disk.use_of(tmp_path, 99).deep is (depth >= 32)
    scanned = disk.scan(tmp_path, 99)
    assert disk.is_cut_off(scanned) is deep and len(scanned) == min(depth, 33) + (depth <= 32)
    assert len(disk.list_files(tmp_path, 9)) == int(depth <= 32)


@pytest.mark.parametrize(("limit", "listed"), [(1, 1), (2, 2), (3, 3), (4, 3)])
def test_files_are_listed_by_path_and_no_more_than_so_many(tmp_path: Path, limit: int, listed: int) -> None:
    _tree(tmp_path, "b", "a/c", "a/b", "e/", data=b"abc")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    os.mkfifo(tmp_path / "pipe")
    found = disk.list_files(tmp_path, limit)
    assert len(found) == listed and [one.path for one in found] == sorted(one.path for one in found)
    if listed == 3:
        assert [(one.path, one.size) for one in found] == [("a/b", 3), ("a/c", 3), ("b", 3)]
    scanned = disk.scan(tmp_path, 99)
    assert {path for path, version in scanned.items() if not version} == {"a", "e"}
    assert {path for path, version in scanned.items() if version} == {"a/b", "a/c", "b"}
    assert len(disk.scan(tmp_path, limit)) == limit and disk.list_files(tmp_path / "none", 9) == []


# Read, written, removed


def test_parts_of_a_file_are_read(tmp_path: Path) -> None:
    _tree(tmp_path, "a/b", "empty/", data=b"hello")
    assert [disk.read_file(tmp_path, "a/b", *part) for part in ((0, 2), (2, 99), (5, 1), (9, 1))] == [
        *(b"he", b"llo"),
        *(b"", b""),
    ]
    (tmp_path / "link").symlink_to(tmp_path / "a/b")
    (tmp_path / "away").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    for path in ("none", "a/none", "none/b", "empty", "link", "away/b", "pipe", "a/b/c"):
        with pytest.raises(SandboxFailed):
            disk.read_file(tmp_path, path, 0, 9)
    for path in ("", "/a", "a/", "a//b", ".", "..", "a/../a/b", "a\0", "\0zz"):
        with pytest.raises(SandboxFailed, match="not the path"):
            disk.read_file(tmp_path, path, 0, 9)


def test_names_that_are_no_text_are_paths(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"a\xff\x80")).write_bytes(b"x")
    (found,) = disk.list_files(tmp_path, 9)
    assert found.path == "a\0ff\x0080" and disk.read_file(tmp_path, found.path, 0, 9) == b"x"
    disk.remove_file(tmp_path, found.path)
    assert not list(tmp_path.iterdir())


def _newer(folder: Path) -> Path:
    made = folder / "newer"
    made.write_bytes(b"newer")
    return made


def test_a_file_is_moved_in_in_place_of_another(tmp_path: Path) -> None:
    home = tmp_path / "home"
    _tree(home, "a/b", "c/")
    incoming = tmp_path / "incoming"
    for owner in (0, SOMEBODY):
        incoming.write_bytes(b"newer")
        incoming.chmod(0o600)
        made = disk.write_file(home, "a/b", incoming, owner)
        assert (made.path, made.size) == ("a/b", 5) and not incoming.exists()
        assert (home / "a/b").stat().st_uid == (owner or os.geteuid())
        assert [made] == disk.list_files(home, 9) and (home / "a/b").stat().st_mode & 0o777 == 0o644
    assert disk.write_file(home, "new/er/b", _newer(tmp_path), 0).path == "new/er/b"
    for path in ("a/b/c", "c"):
        incoming.write_bytes(b"x")
        with pytest.raises(SandboxFailed, match="cannot be written"):
            disk.write_file(home, path, incoming, 0)
    disk.remove_file(home, "a/b")
    disk.remove_file(home, "a/b")
    disk.remove_file(home, "c")
    disk.remove_file(home, "new/er/b")
    assert disk.list_files(home, 9) == [] and (home / "c").is_dir()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into everything")
def test_what_code_closed_off_is_opened(tmp_path: Path) -> None:
    _tree(tmp_path, "a/b")
    (tmp_path / "a/b").chmod(0)
    (tmp_path / "a").chmod(0)
    assert disk.read_file(tmp_path, "a/b", 0, 9) == b"x"


def test_what_may_not_be_opened_is_made_so_that_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(tmp_path, "a/b")
    opens, refused = os.open, {"a", "b"}

    def once(path: Any, *given: Any, **named: Any) -> int:
        if path in refused:
            refused.discard(path)
            raise PermissionError(path)
        return opens(path, *given, **named)

    monkeypatch.setattr(os, "open", once)
    assert disk.read_file(tmp_path, "a/b", 0, 9) == b"x" and not refused
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700 and (tmp_path / "a/b").stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(os, "chmod", _refuses)
    refused |= {"a"}
    assert disk.scan(tmp_path, 9) == {"a": ""}


def _refuses(*given: Any, **named: Any) -> Any:
    raise PermissionError("no")


# Carried from one folder to the other


def _same(one: Path, other: Path) -> None:
    def looked(folder: Path) -> dict[str, bytes | None]:
        every = folder.rglob("*")
        return {str(at.relative_to(folder)): at.read_bytes() if at.is_file() else None for at in every}

    assert looked(one) == looked(other)


@pytest.mark.parametrize(
    ("gone", "made"),
    [
        ([], ["new", "deep/er/file", "empty/"]),
        (["a"], []),
        (["a"], ["a"]),
        (["f/g", "f"], ["f"]),
        (["a"], ["a/b"]),
        (["f/g", "f"], []),
        ([], []),
    ],
)
def test_changes_are_carried(tmp_path: Path, gone: list[str], made: list[str]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        _tree(folder, "a", "f/g", "h/")
    before = disk.scan(source, 99)
    for path in gone:
        (source / path).rmdir() if (source / path).is_dir() else (source / path).unlink()
    _tree(source, *made, data=b"other")
    disk.carry(source, target, before, disk.scan(source, 99), 0)
    _same(source, target)
    untouched = (target / "h").stat().st_ino
    disk.carry(source, target, disk.scan(source, 99), disk.scan(source, 99), 0)
    assert (target / "h").stat().st_ino == untouched


def test_what_is_carried_belongs_to_its_user_and_holes_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    _tree(source, "d/")
    target.mkdir()
    with (source / "d/hole").open("wb") as file:
        file.write(b"begin")
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(b"middle")
    (source / "d/nothing").touch()
    with (source / "all").open("wb") as file:
        file.truncate(1 << 20)
    disk.carry(source, target, {}, disk.scan(source, 99), SOMEBODY)
    _same(source, target)
    assert {one.stat().st_uid for one in target.rglob("*")} == {SOMEBODY}
    assert (target / "d/hole").stat().st_blocks * 512 < 1 << 20 and (target / "all").stat().st_blocks == 0
    assert (target / "d/hole").stat().st_mode & 0o777 == 0o644 and (target / "d").stat().st_mode & 0o777 == 0o700


# Cleared


def test_however_deep_a_folder_is_it_is_emptied(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (_deep(home, 50) / "file").touch()
    _tree(home, "a", "b/c", "b/d/", "e/f/g/h")
    (home / "link").symlink_to(tmp_path)
    disk.clear(home)
    assert list(tmp_path.iterdir()) == [home] and not list(home.iterdir())
    disk.clear(tmp_path / "none")
    opened = disk.open_folder(home)
    (home / "a").touch()
    disk.clear(opened)
    os.close(opened)
    assert not list(home.iterdir())


def test_what_cannot_be_deleted_is_no_endless_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(tmp_path, "a", "b/")
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", _refuses)
        patched.setattr(os, "rmdir", _refuses)
        disk.clear(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "b"]
    # What can be goes all the same, whatever comes before it.
    listdir, unlink = os.listdir, os.unlink

    def refuses_one(name: str, *, dir_fd: int) -> None:
        if name == "a":
            raise PermissionError(name)
        unlink(name, dir_fd=dir_fd)

    _tree(tmp_path, "b/c", "d")
    with monkeypatch.context() as patched:
        patched.setattr(os, "listdir", lambda folder: sorted(listdir(folder)))
        patched.setattr(os, "unlink", refuses_one)
        disk.clear(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_the_folders_of_a_machine(tmp_path: Path) -> None:
    for user, home in ((0, tmp_path / "deep" / "one"), (SOMEBODY, tmp_path / "two")):
        local.make_home(home, user)
        local.make_home(home, user)
        assert {one.name: one.stat().st_mode & 0o777 for one in home.iterdir()} == {"files": 0o700, "scratch": 0o700}
        assert {one.stat().st_uid for one in home.iterdir()} == {user or os.geteuid()}
        assert home.stat().st_mode & 0o777 == 0o711
        _tree(home, "files/a/b", "scratch/c", "left")
        local.delete_home(home)
        assert not home.exists()
        local.delete_home(home)


# A machine without its process


def test_how_a_process_is_started(tmp_path: Path) -> None:
    assert user_of("a", root=False) == 0
    rooms: tuple[tuple[Room, int], ...] = (("memory", 64 << 20), ("counted", 1 << 20))
    for room, largest in rooms:
        *start, given = command("/py", tmp_path / "cntr_a", LIMITS, 99, room, 7)
        assert start[:5] == ["/py", "-I", "-B", "-X", "utf8"] and start[5].endswith("/interpreter.py")
        home = str(tmp_path / "cntr_a")
        assert json.loads(given) == {
            "home": home,
            "files": f"{home}/files",
            "scratch": f"{home}/scratch",
            "space": room,
            "control": 7,
            "disk_bytes": 64 << 20,
            "max_files": 21,
            "limits": {"memory": 99, "file_bytes": largest, "threads": 3, "descriptors": 256, "uid": user_of("cntr_a")},
        }
    assert file_bytes(LIMITS.model_copy(update={"disk_bytes": 63}), "counted") == 1
    users = {user_of(f"cntr_{number}", root=True) for number in range(50)}
    assert len(users) == 50 and all(1_000_000_000 <= user < 1_000_000_000 + (1 << 24) for user in users)
    said = environment(tmp_path)
    assert (said["HOME"], said["TMPDIR"]) == (str(tmp_path / "files"), str(tmp_path / "scratch"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    local.make_home(tmp_path / "cntr_a")
    return tmp_path / "cntr_a"


@pytest.mark.parametrize(("files", "left"), [(0, 5), (1, 4), (3, 2), (5, 0)])
def test_so_many_files_may_be_made_in_a_counted_room(home: Path, files: int, left: int) -> None:
    one = MachineFiles(home, LIMITS, "counted")
    _tree(home, *(f"files/f{number}" for number in range(files)))
    assert one.left() == left
    # As large as each could grow they must fit.
    (home / "files" / "d").mkdir()
    small = LIMITS.model_copy(update={"files": 500})
    assert MachineFiles(home, small, "counted").left() in (63 - files, 64 - files)
    _deep(home / "files", 40)
    assert MachineFiles(home, small, "counted").left() == 0
    # More than there may be were made by what nobody counts: nothing runs beside them.
    with pytest.raises(SandboxFailed, match="more files than its limit"):
        one.left()


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({}, []),
        ({"pictures": None}, []),
        ({"pictures": "picture-1-0.png"}, []),
        ({"pictures": [5, "picture-1-0.png"]}, [1]),
        ({"pictures": ["../picture-1-0.png", "x.png", "picture-1-0.pngx", "picture-1-none.png"]}, []),
        ({"pictures": ["picture-1-3.png", "picture-1-0.png"]}, [1]),
        ({"pictures": [f"picture-2-{number}.png" for number in range(12)]}, [2] * 10),
    ],
)
def test_pictures_are_taken_and_gone(home: Path, answer: dict[str, object], found: list[int]) -> None:
    (home / "scratch/picture-1-0.png").write_bytes(PNG + b"1")
    (home / "scratch/picture-1-3.png").write_bytes(b"no picture")
    for number in range(12):
        (home / f"scratch/picture-2-{number}.png").write_bytes(PNG + b"2")
    taken = MachineFiles(home, LIMITS, "counted").pictures(answer)
    assert [int(one[-1:]) for one in taken] == found
    assert len(list((home / "scratch").iterdir())) == 14 - len(found) - ("picture-1-3.png" in str(answer))
    if len(found) == 10:
        assert (home / "scratch/picture-2-10.png").exists() and (home / "scratch/picture-2-11.png").exists()


@pytest.mark.parametrize(("sizes", "shown"), [((1024,), [1024]), ((1025,), []), ((600, 425, 424), [600, 424])])
def test_all_pictures_together_are_no_larger_than_they_may_be(
    home: Path, sizes: tuple[int, ...], shown: list[int]
) -> None:
    names = [f"picture-1-{number}.png" for number in range(len(sizes))]
    for name, size in zip(names, sizes, strict=True):
        (home / "scratch" / name).write_bytes(PNG.ljust(size, b"x"))
    assert [len(one) for one in MachineFiles(home, LIMITS, "counted").pictures({"pictures": names})] == shown
    assert not list((home / "scratch").iterdir())


def test_a_machine_that_was_never_started_is_not_alive(home: Path) -> None:
    one = Machine(home, LIMITS, 99, "counted")
    assert not one.alive and one.busy and not one.ended
    one.kill()
    assert one.ended
    asyncio.run(one.end())
    assert not one.alive


async def test_a_process_is_stopped_goes_on_and_ends() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    assert not machine.has_stopped(process.pid)
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(30):
        while not machine.has_stopped(process.pid):
            await asyncio.sleep(0)
    process.kill()
    await process.wait()
    assert not machine.has_stopped(process.pid)


def test_the_threads_of_a_process_are_counted() -> None:
    assert machine.count_threads(os.getpid()) == len(os.listdir("/proc/self/task"))
    assert machine.count_threads(1 << 23) == 0


def test_its_own_files_are_brought_in_and_taken_out(home: Path, tmp_path: Path) -> None:
    """As in a room of memory, which here is a folder."""
    inside = tmp_path / "inside"
    _tree(inside, "files/", "scratch/")
    one = MachineFiles(home, LIMITS, "memory")
    with pytest.raises(SandboxFailed, match="was stopped"):
        one.bring_in()
    one.enter(os.open(inside, os.O_RDONLY))
    _tree(home, "files/a", "files/d/b")
    one.bring_in()
    _same(home / "files", inside / "files")
    (inside / "files/a").write_bytes(b"changed")
    _tree(inside, "files/new")
    one.take_out()
    _same(home / "files", inside / "files")
    # What nobody changed is not carried back, whatever is there meanwhile.
    (home / "files/a").write_bytes(b"outside")
    one.take_out()
    assert (home / "files/a").read_bytes() == b"outside"
    one.bring_in()
    _same(home / "files", inside / "files")
    with one.inner("files") as opened:
        assert not os.get_inheritable(opened)
    one.leave()
    one.leave()
    assert not one.copied


@pytest.mark.parametrize(
    ("way", "said"), [("bring_in", "copied to the interpreter"), ("take_out", "could not be saved")]
)
def test_files_that_cannot_be_carried_are_told(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, said: str
) -> None:
    _tree(tmp_path, "inside/files/a", "cntr_a/files/b")
    one = MachineFiles(home, LIMITS, "memory")
    one.enter(os.open(tmp_path / "inside", os.O_RDONLY))

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "sendfile", full)
    with pytest.raises(SandboxFailed, match=f"{said}: No space left"):
        getattr(one, way)()
    one.leave()


# All machines, without any that runs


def _sandbox(tmp_path: Path, **limits: Any) -> LocalSandbox:
    return LocalSandbox(tmp_path, LIMITS.model_copy(update=limits), room="counted")


async def _parts(*parts: bytes) -> Any:
    for part in parts:
        yield part


def _taken(home: Path) -> int:
    return disk.use_of(local.make_home(home), 99).bytes


@pytest.mark.parametrize(("sizes", "fits"), [((40, 59), True), ((40, 60), True), ((40, 61), False), ((101,), False)])
async def test_how_much_may_be_put_into_a_machine(tmp_path: Path, sizes: tuple[int, ...], fits: bool) -> None:
    sandbox = _sandbox(tmp_path, disk_bytes=_taken(tmp_path / "a") + 100)
    if fits:
        made = await sandbox.put("a", "f", _parts(*map(bytes, sizes)))
        assert made.size == sum(sizes) and await sandbox.list("a") == [made]
    else:
        with pytest.raises(SandboxFailed, match="too large"):
            await sandbox.put("a", "f", _parts(*map(bytes, sizes)))
        assert await sandbox.list("a") == []
    assert sorted(one.name for one in (tmp_path / "a").iterdir()) == ["files", "scratch"]


@pytest.mark.parametrize(("more", "files", "fits"), [(1, 2, True), (1, 3, False), (0, 2, False), (-1, 0, False)])
async def test_a_full_machine_takes_nothing(tmp_path: Path, more: int, files: int, fits: bool) -> None:
    """`files` and `scratch` are counted too: of five, three are left."""
    local.make_home(tmp_path / "a")
    _tree(tmp_path, *(f"a/files/f{number}" for number in range(files)))
    sandbox = _sandbox(tmp_path, disk_bytes=_taken(tmp_path / "a") + more)
    if fits:
        await sandbox.put("a", "f", _parts(b"x"))
    else:
        with pytest.raises(SandboxFailed, match="is full"):
            await sandbox.put("a", "f", _parts(b""))


class _Played:
    """A machine that runs nothing; which were made and ended is noted."""

    def __init__(self, home: Path, limits: Any, memory: int, room: str) -> None:
        self.key, self.memory, self.busy, self.alive = home.name, memory, True, True
        self.ended: list[bool] = []
        self.gate: asyncio.Event | None = None
        MADE.append(self)

    async def start(self, python: str) -> None:
        if FAILS:
            raise FAILS[0]

    async def run(self, code: str) -> str:
        if code == "die":
            self.alive = False
        if code == "wait":
            self.gate = asyncio.Event()
            await self.gate.wait()
        return f"{self.key} {code}"

    def kill(self) -> None:
        self.alive = False

    async def end(self, *, keep: bool = True) -> None:
        self.alive = False
        self.ended.append(keep)


MADE: list[_Played] = []
FAILS: list[BaseException] = []


@pytest.fixture
def played(tmp_path: Path) -> Iterator[LocalSandbox]:
    limits = LIMITS.model_copy(update={"machines": 2, "memory": 1_000})
    made: Any = _Played
    yield LocalSandbox(tmp_path, limits, room="counted", make=made)
    MADE.clear()
    FAILS.clear()


async def test_machines_are_used_again_and_the_idlest_makes_room(played: LocalSandbox) -> None:
    for key in ("a", "b", "a", "c"):
        run: Any = await played.run(key, "x", 500)
        assert run == f"{key} x"
    assert [(one.key, one.ended, one.busy) for one in MADE] == [
        ("a", [], False),
        ("b", [True], False),
        ("c", [], False),
    ]
    # Another memory is another machine, and no more than there may be.
    await played.run("a", "x", 5_000)
    assert MADE[0].ended == [True] and (MADE[3].key, MADE[3].memory) == ("a", 1_000)
    await played.run("a", "die", 1_000)
    assert MADE[3].ended == [True] and list(played.machines) == ["c"]
    await played.run("a", "x", 1_000)
    await played.stop("a")
    await played.stop("a")
    await played.delete("c")
    assert MADE[4].ended == [True] and MADE[2].ended == [False] and not played.machines
    assert sorted(await played.keys()) == ["a", "b"]
    await played.run("a", "x", 1)
    await played.aclose()
    assert MADE[5].ended == [True] and not played.machines


async def test_a_run_that_is_given_up_and_one_that_waits_for_a_place(played: LocalSandbox) -> None:
    waiting = [asyncio.create_task(played.run(key, "wait", 1)) for key in ("a", "b")]
    third = asyncio.create_task(played.run("c", "x", 1))
    async with asyncio.timeout(30):
        while sum(one.gate is not None for one in MADE) < 2:
            await asyncio.sleep(0.001)
        assert not third.done() and len(MADE) == 2
        waiting[0].cancel()
        await asyncio.wait((waiting[0],))
        assert waiting[0].cancelled() and MADE[0].ended == [True]
        run: Any = await third
        assert run == "c x" and MADE[1].gate is not None
        MADE[1].gate.set()
        await waiting[1]
    assert set(played.machines) == {"b", "c"}


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError("no"), SandboxFailed), (SandboxFailed("refused"), SandboxFailed)]
)
async def test_a_machine_that_cannot_be_started_is_none(
    played: LocalSandbox, error: Exception, raised: type[Exception]
) -> None:
    FAILS.append(error)
    with pytest.raises(raised, match="at the moment" if isinstance(error, OSError) else "refused"):
        await played.run("a", "x", 1)
    assert not played.machines
    FAILS.clear()
    await played.run("a", "x", 1)


async def test_where_there_is_no_folder_there_are_no_machines(tmp_path: Path) -> None:
    sandbox = _sandbox(tmp_path / "none")
    assert await sandbox.keys() == () and await sandbox.list("a") == []
    await sandbox.delete("a")
    await sandbox.aclose()
