"""The form of log lines for a person: short, and nothing in them is obeyed by a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from typing import Any

import pytest

from antiphon.observability.log_lines import console_line

RESPONSE = {
    "timestamp": "2026-11-24T12:03:44.000001Z",
    "level": "info",
    "message": "response",
    "process": "sidecar 0",
    "request_id": "6f0bd1a4-1d2e-4f6c-9d1e-0a4f6c9d1e0a",
    "response_id": "resp_019c115970000ab4909b1f0c9e7d5a3b2108c4d6e1f2a3b4",
    "door": "extproc",
    "model": "llama3.2",
    "outcome": "completed",
    "owner": "b:54f7f7e5d7aa",
    "upstream": "default",
    "input_tokens": 1234,
    "output_tokens": 567,
    "head_seconds": 0.1,
    "seconds": 12.345678,
}


def test_a_response_fits_a_terminal() -> None:
    time, rest = console_line(RESPONSE, colors=False).split("  ", 1)
    assert len(time) == 8
    assert rest == "llama3.2  completed  1234+567 tokens  12.35 s  resp_019c115970000ab4"
    assert len(time) + 2 + len(rest) <= 80


def test_a_failure_has_its_cause_and_what_to_do_below() -> None:
    failed = {name: value for name, value in RESPONSE.items() if not name.endswith("_tokens")}
    failed |= {"level": "warning", "outcome": "failed", "cause": "CUDA out of memory", "advice": "look there"}
    first, *below = console_line(failed, colors=False).splitlines()
    assert first[8:] == "  warning  llama3.2  failed  12.35 s  resp_019c115970000ab4" and len(first) <= 80
    assert below == ["          CUDA out of memory", "          → look there"]


def test_a_failed_request_fits_a_terminal_too() -> None:
    line = {"message": "request", "method": "POST", "path": "/v1/files", "status": 500, "seconds": 0.5}
    line |= {"request_id": f"req_{'0a' * 24}", "cause": "disk full"}
    first, below = console_line(line, colors=False).splitlines()
    assert first.strip() == f"500  POST /v1/files  0.50 s  req_{'0a' * 8}" and below == "          disk full"


def test_an_id_of_another_program_is_whole() -> None:
    for given in (RESPONSE["request_id"], f"resp_{'0a' * 25}", f"RESP_{'0a' * 24}", "job-2026-11-27"):
        assert console_line({"message": "request", "request_id": given}, colors=False).endswith(f"  {given}")


def test_paths_of_sockets_are_for_failures() -> None:
    line = {"message": "serving", "process": "sidecar 0", "grpc": "unix:/data/sidecar-0.sock", "http": "127.0.0.1:8089"}
    assert console_line(line, colors=False).strip() == "serving  [sidecar 0]  http=127.0.0.1:8089"
    failed = console_line({**line, "level": "warning"}, colors=False)
    assert failed.endswith("grpc=unix:/data/sidecar-0.sock  http=127.0.0.1:8089")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"message": "request", "method": "GET", "path": "/v1/x", "status": 404, "seconds": 0.001},
            "404  GET /v1/x  0.00 s",
        ),
        ({"message": "draining", "process": "sidecar 1", "seconds": 30}, "draining  [sidecar 1]  seconds=30"),
        ({"message": "x", "problem": "two words"}, "x  problem='two words'"),
        ({"event": "x", "level": "error", "exception": "Traceback:\n  File"}, "error  x\nTraceback:\n  File"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_other_lines_say_all_they_know(line: dict[str, Any], said: str) -> None:
    assert console_line(line, colors=False).strip() == said


def test_colors_are_for_terminals() -> None:
    painted = console_line(RESPONSE, colors=True)
    assert "\x1b[32mcompleted\x1b[0m" in painted
    assert "\x1b[31mfailed\x1b[0m" in console_line(RESPONSE | {"outcome": "failed"}, colors=True)


@pytest.mark.parametrize("name", sorted({*RESPONSE, "cause", "advice", "other", "path"} - {"seconds", "timestamp"}))
@pytest.mark.parametrize("message", ["response", "request", "draining"])
def test_nothing_that_was_sent_moves_the_cursor(name: str, message: str) -> None:
    line = RESPONSE | {"message": message, name: "\x1b[2J\r\nx"}
    assert not set(console_line(line, colors=False)) & {"\x1b", "\r"}


@pytest.mark.parametrize(("no_color", "painted"), [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False)])
def test_a_terminal_gets_colors_unless_its_user_wants_none(no_color: dict[str, str], painted: bool) -> None:
    code = (
        "import structlog; from antiphon.observability.logs import configure; configure('info', 'auto'); "
        "structlog.get_logger().info('draining', seconds=30)"
    )
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | no_color
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environ, timeout=60, check=True)
        written = os.read(ours, 4096)
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 0 and b"draining" in written and b"seconds=30" in written
    assert (b"\x1b[" in written) is painted


_RED, _GREEN, _YELLOW, _BOLD, _DIM, _END = (f"\x1b[{number}m" for number in (31, 32, 33, 1, 2, 0))


@pytest.mark.parametrize(
    ("line", "painted"),
    [
        ({"message": "x"}, f"{_BOLD}x{_END}"),
        ({"message": "x", "level": "debug"}, f"{_DIM}debug{_END}  {_DIM}x{_END}"),
        ({"message": "x", "level": "warning"}, f"{_YELLOW}warning{_END}  {_YELLOW}x{_END}"),
        ({"message": "x", "level": "warn"}, f"{_YELLOW}warn{_END}  {_YELLOW}x{_END}"),
        ({"message": "x", "level": "error"}, f"{_RED}error{_END}  {_RED}x{_END}"),
        ({"message": "response", "outcome": "incomplete"}, f"{_GREEN}incomplete{_END}"),
        ({"message": "response", "outcome": "ok"}, f"{_GREEN}ok{_END}"),
        ({"message": "response", "outcome": "cancelled"}, f"{_RED}cancelled{_END}"),
        ({"message": "request", "status": 399}, f"{_GREEN}399{_END}"),
        ({"message": "request", "status": 400}, f"{_RED}400{_END}"),
        ({"message": "request", "status": "no"}, f"{_RED}no{_END}"),
    ],
    ids=repr,
)
def test_a_color_tells_how_grave_it_is(line: dict[str, Any], painted: str) -> None:
    said = console_line({"timestamp": "2026-11-24T12:03:44Z", **line}, colors=True)
    assert said.startswith(_DIM) and said.partition("  ")[2].strip() == painted


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"input_tokens": 5}, "m  completed  5+0 tokens"),
        ({"output_tokens": 5}, "m  completed  0+5 tokens"),
        ({"request_id": "req_1"}, "m  completed    req_1"),
        ({"response_id": "resp_1", "request_id": "req_1"}, "m  completed    resp_1"),
        ({"cause": "two words", "ignored": ["a", "b.c"]}, "m  completed    two words  ignored=a,b.c"),
        ({"seconds": 1.005, "cause": ""}, "m  completed  1.00 s"),
        ({"seconds": "soon"}, "m  completed"),
    ],
    ids=repr,
)
def test_a_response_says_what_is_known_and_leaves_out_the_rest(line: dict[str, Any], said: str) -> None:
    shown = console_line({"message": "response", "model": "m", "outcome": "completed", **line}, colors=False)
    assert shown.split() == said.split() and shown.startswith(" " * 8 + "  m")


def test_a_request_says_who_asked_for_what() -> None:
    line = {"message": "request", "method": "GET", "path": "/a b", "status": 200, "request_id": "r1", "seconds": 2}
    assert console_line(line, colors=False).strip() == "200  GET '/a b'  2.00 s  r1"


def test_a_line_without_a_valid_time_keeps_its_place() -> None:
    for stamp in (None, "soon"):
        assert console_line({"timestamp": stamp, "message": "x"}, colors=False) == " " * 8 + "  x"
