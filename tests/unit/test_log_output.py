"""The way out for log lines, whoever reads them: at once, late, or never."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from antiphon.observability.log_lines import LogOutput
from tests.support.file_room import file_room


def _tell(number: int) -> bytes:
    return b"dropped %d" % number


@contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    # One page: the least that the kernel gives.
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield reading, writing
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def _output(descriptor: int, max_bytes: int = 1 << 20) -> Iterator[LogOutput]:
    output = LogOutput(descriptor, _tell, max_bytes=max_bytes)
    try:
        yield output
    finally:
        output.close()


def _read_until(reading: int, last: bytes) -> list[bytes]:
    """The lines up to one that begins so."""
    data = b""
    while not (data.endswith(b"\n") and data.split(b"\n")[-2].startswith(last)):
        part = os.read(reading, 1 << 16)
        assert part
        data += part
    return data.split(b"\n")[:-1]


def _descriptors_like(descriptor: int) -> int:
    """The number of this process's descriptors that belong to the pipe of `descriptor`, both its ends."""
    pipe = os.readlink(f"/proc/self/fd/{descriptor}")
    found = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{name}") == pipe
    return found


def test_a_line_is_in_the_pipe_when_its_call_returns() -> None:
    with _pipe() as (reading, writing), _output(writing) as output:
        output.write(b"hello")
        os.set_blocking(reading, False)
        assert os.read(reading, 100) == b"hello\n"
        assert os.get_blocking(writing), "the flag of others' descriptor is theirs"


def test_a_pipe_that_nobody_reads_holds_up_nobody_and_loses_nothing_that_has_room() -> None:
    lines = [b"%05d" % number + b"x" * 200 for number in range(500)]
    with _pipe() as (reading, writing), _output(writing) as output:
        for line in lines:
            output.write(line)
        output.write(b"last")
        assert _read_until(reading, b"last") == [*lines, b"last"]
        assert output.flush(10)


def test_what_has_no_room_is_counted_and_told() -> None:
    with _pipe() as (reading, writing), _output(writing, max_bytes=10_000) as output:
        for number in range(1_000):
            output.write(b"%05d" % number + b"x" * 95)
        kept: list[bytes] = []
        dropped = 0
        # Told once or in parts: where the writer finds room in between, more may be dropped after it.
        while len(kept) + dropped < 1_000:
            got = _read_until(reading, b"dropped")
            kept += [line for line in got if not line.startswith(b"dropped")]
            dropped += sum(int(line.split()[1]) for line in got if line.startswith(b"dropped"))
        assert len(kept) + dropped == 1_000 and kept == sorted(set(kept))
        # At least what has room, and never more than a few times that.
        assert 100 <= len(kept) <= 400
        # And it goes on.
        output.write(b"again")
        assert _read_until(reading, b"again") == [b"again"]


def test_a_line_larger_than_the_pipe_comes_out_whole() -> None:
    with _pipe() as (reading, writing), _output(writing) as output:
        for line in (b"a" * 20_000, b"b"):
            output.write(line)
        assert _read_until(reading, b"b") == [b"a" * 20_000, b"b"]


def test_a_file_is_written_in_order(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file, _output(file.fileno()) as output:
        for number in range(100):
            output.write(b"%d" % number)
        assert output.flush(10)
        assert path.read_bytes().split() == [b"%d" % number for number in range(100)]


def test_a_disk_that_stands_still_holds_up_nobody() -> None:
    """Here a socket that nobody reads: like a disk, and unlike a pipe, it is written by the thread, which waits."""
    reading, writing = socket.socketpair()
    with reading, writing, _output(writing.fileno(), 1 << 24) as output:
        output.write(b"x" * (8 << 20))
        for number in range(100):
            output.write(b"%d" % number)
        assert not output.flush(0)
        _read_until(reading.fileno(), b"99")
        assert output.flush(10)


def test_what_a_full_disk_does_not_take_is_counted_and_told(tmp_path: Path) -> None:
    path, room = tmp_path / "log", 7
    with path.open("wb") as file, _output(file.fileno()) as output:
        # The disk is full in the middle of the second; a bit of room is not enough to tell of it.
        for more, line in (
            (0, b"first"),
            (0, b"second"),
            (0, b"third"),
            (3, b"fourth"),
            (1000, b"fifth"),
            (0, b"sixth"),
        ):
            room += more
            with file_room(room):
                output.write(line)
                assert output.flush(10)
        assert path.read_bytes() == b"first\ns\ndr\ndropped 3\nfifth\nsixth\n"
        assert output.lost == 3


def test_a_reader_that_is_gone_fails_nobody() -> None:
    reading, writing = os.pipe()
    with _output(writing) as output:
        os.close(reading)
        for _ in range(10):
            output.write(b"x")
        assert output.flush(10)
    os.close(writing)


def test_lines_of_many_threads_are_whole() -> None:
    with _pipe() as (reading, writing), _output(writing) as output:

        def write(number: int) -> None:
            for _ in range(100):
                output.write(b"%d" % number * 50)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.extend(_read_until(reading, b"end")))
        reader.start()
        for thread in threads:
            thread.join()
        output.write(b"end")
        reader.join(30)
        assert sorted(got[:-1]) == sorted(b"%d" % number * 50 for number in range(5) for _ in range(100))


def test_closing_gives_the_descriptors_back() -> None:
    with _pipe() as (_, writing):
        # Threads of earlier tests may open and close descriptors meanwhile: only those of this pipe count.
        assert _descriptors_like(writing) == 2
        for _ in range(3):
            with _output(writing) as output:
                output.write(b"x")
                assert _descriptors_like(writing) > 2
        assert _descriptors_like(writing) == 2


def test_a_mebibyte_waits_for_a_reader_and_nothing_more() -> None:
    """The first line fills the pipe; what is behind it waits."""
    with _pipe() as (reading, writing):
        output = LogOutput(writing, _tell)
        for _ in range(5):
            output.write(b"x" * (300 << 10))
        assert output.lost == 2, "there is room for three"
        output.write(b"x" * (1 << 20), 7)
        assert output.lost == 2 + 7, "a piece of several lines is counted by its lines"
        assert _read_until(reading, b"dropped")
        output.close()


def test_flushing_ends_after_its_time() -> None:
    with _pipe() as (reading, writing):
        output = LogOutput(writing, _tell)
        output.write(b"x" * 20_000)
        assert not output.flush(0.01)
        reader = threading.Thread(target=_read_until, args=(reading, b"x"))
        reader.start()
        assert output.flush(60)
        reader.join()
        output.close()
