"""The log and the metrics blame the upstream for its silence in each way of serving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.background_app import processes
from tests.support.chat_server import WaitGone, answer
from tests.support.metrics import value_of


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("door", ["http", "background"])
async def test_a_silent_upstream_is_at_fault(tmp_path: Path, door: str, stream: bool) -> None:
    async with processes(tmp_path / "data") as made:
        app = await made.start(head=0.05)
        made.chat.script(answer(framing="none", parts=[WaitGone()]))
        with capture_logs() as lines:
            if door == "background":
                created = await app.create(stream=False)
                ended = await app.ended(created["id"])
                assert ended["error"]["code"] == "upstream_timeout"
            else:
                body: dict[str, Any] = {"model": "m", "input": "hi", "stream": stream}
                async with app.session.post(f"{app.url}/responses", json=body) as got:
                    assert got.status == 504
            await app.app.workers.aclose()
        found = [line for line in lines if line["event"] == "response" and line["door"] == door]
        (line,) = [each for each in found if "fault" in each]
        assert (line["fault"], line["operation"], line["upstream"]) == ("upstream", "call_upstream", "default")
        assert line["cause"].startswith("timed_out: no answer within") and line["code"] == "upstream_timeout"
        text = app.app.context.telemetry.metrics.render().decode()
        assert value_of(text, "responses_total", door=door, fault="upstream") == 1
        assert value_of(text, "responses_total", door=door, fault="ours") == 0
