"""Settings at both sides of their bounds: the last value that is taken, and the first that is not.

The bounds are those of `config/limits.py`, `config/state.py`, `config/tools.py` and `config/processes.py`.
"""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.config.limits import CorsSettings, LimitSettings, TimeoutSettings
from antiphon.config.settings import load_settings
from antiphon.errors import ConfigError

MIB = 1024 * 1024


def _given(path: str, value: object) -> dict[str, Any]:
    given: Any = value
    for name in reversed(path.split(".")):
        given = {name: given}
    return dict(given)


def _read(path: str, value: object) -> object:
    found: Any = load_settings(_given(path, value))
    for name in path.split("."):
        found = getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("path", "taken", "refused"),
    [
        ("workers", 1, 0),
        ("workers", 256, 257),
        *((f"limits.{name}", 1024, 1023) for name in ("request_body_bytes", "upstream_body_bytes", "sse_event_bytes")),
        *((f"limits.{name}", 1024, 1023) for name in ("upstream_error_bytes", "no_output_bytes", "history_bytes")),
        ("limits.page_bytes", 1024, 1023),
        *((f"limits.{name}", 64 * 1024, 64 * 1024 - 1) for name in ("drive_stream_bytes", "drive_ahead_bytes")),
        *((f"limits.{name}", 1, 0) for name in ("input_items", "chain_items", "tools", "tool_calls")),
        *((f"limits.{name}", 1, 0) for name in ("concurrent_requests", "owner_bytes")),
        *((f"limits.{name}", 0, -1) for name in ("owner_requests", "owner_bytes_in_flight")),
        *(
            (f"timeouts.{name}", 0.001, 0)
            for name in ("connect", "head", "idle", "no_output", "error_body", "response")
        ),
        *((f"timeouts.{name}", 0.001, 0) for name in ("keepalive", "request", "client_idle", "send", "save", "settle")),
        ("timeouts.read", 0.001, 0),
        *((f"timeouts.{name}", 0, -0.001) for name in ("head_wait", "check", "hung", "drain", "notice")),
        *((f"fetch.{name}", 1, 0) for name in ("total_bytes", "files", "concurrent")),
        ("fetch.seconds", 0.001, 0),
        ("fetch.redirects", 0, -1),
        ("websocket.connections", 1, 0),
        ("websocket.memory_bytes", 0, -1),
        ("websocket.total_bytes", 1024, 1023),
        *((f"websocket.{name}", 0.001, 0) for name in ("seconds", "ping")),
        ("state.pool", 1, 0),
        ("state.pool", 64, 65),
        ("files.max_bytes", 1, 0),
        ("files.lease", 1, 0.999),
        ("vector_stores.ingest", 0, -1),
        ("vector_stores.file_memory_bytes", 256 * MIB, 256 * MIB - 1),
        ("vector_stores.text_bytes", 1024, 1023),
        ("vector_stores.tokens", 1_000, 999),
        ("vector_stores.matrix_bytes", MIB, MIB - 1),
        ("vector_stores.lease", 1.001, 1),
        ("background.workers", 0, -1),
        ("background.attempts", 1, 0),
        ("background.lease", 1, 0.999),
        ("retention.responses", 0.001, 0),
        ("tools.output_chars", 100, 99),
        ("tools.result_bytes", 1024, 1023),
        *((f"tools.{name}", 1, 0) for name in ("concurrent", "calls", "turns")),
        ("mcp.tools", 1, 0),
        ("mcp.answer_bytes", 1024, 1023),
        ("mcp.list_seconds", 0, -0.001),
        ("code_interpreter.memory", 128 * MIB, 128 * MIB - 1),
        ("code_interpreter.disk_bytes", MIB, MIB - 1),
        ("code_interpreter.output_bytes", 1024, 1023),
        ("code_interpreter.idle", 60, 59.9),
        *((f"code_interpreter.{name}", 1, 0) for name in ("files", "threads", "machines", "containers", "per_owner")),
    ],
)
def test_a_setting_is_taken_up_to_its_bound(path: str, taken: float, refused: float) -> None:
    assert _read(path, taken) == taken
    with pytest.raises(ConfigError, match=path.rpartition(".")[2]):
        load_settings(_given(path, refused))


def test_the_requests_in_flight_have_room_for_one_of_the_largest() -> None:
    load_settings({"limits": {"request_body_bytes": 2048, "bytes_in_flight": 2048, "owner_bytes_in_flight": 2048}})
    for name in ("bytes_in_flight", "owner_bytes_in_flight"):
        with pytest.raises(ConfigError, match=f"{name} must be at least request_body_bytes"):
            load_settings({"limits": {"request_body_bytes": 2048, name: 2047}})


@pytest.mark.parametrize(
    ("given", "places", "share"), [(None, 10, 5), (None, 3, 1), (None, 1, 1), (0, 10, 0), (7, 10, 7)]
)
def test_an_owner_has_half_of_the_places_unless_settings_say_otherwise(
    given: int | None, places: int, share: int
) -> None:
    assert LimitSettings(owner_requests=given).share_of_requests(places) == share


@pytest.mark.parametrize(
    ("given", "body", "all_bytes", "share"),
    [(None, 1024, 8192, 4096), (None, 6000, 8192, 6000), (0, 1024, 8192, 0), (1024, 1024, 8192, 1024)],
)
def test_an_owner_has_half_of_the_bytes_and_room_for_one_body(
    given: int | None, body: int, all_bytes: int, share: int
) -> None:
    limits = LimitSettings(request_body_bytes=body, bytes_in_flight=all_bytes, owner_bytes_in_flight=given)
    assert limits.share_of_bytes == share


def test_the_notice_is_a_part_of_the_drain() -> None:
    assert TimeoutSettings(notice=4.9, drain=5).notice == 4.9
    assert TimeoutSettings(notice=0, drain=0).notice == 0
    with pytest.raises(ValueError, match="must be less than drain"):
        TimeoutSettings(notice=5, drain=5)


def test_an_origin_that_is_none_is_named_by_its_place() -> None:
    origins = ("*", "https://app.example", "http://localhost:3000")
    assert CorsSettings(origins=origins).origins == origins
    for wrong in ("app.example", "https://app.example/page", "https://", "https://a b"):
        with pytest.raises(ValueError, match="entry 2 is not an origin"):
            CorsSettings(origins=("*", wrong))
