"""A process of the sandbox whose start is given up leaves nothing open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from antiphon.config.tools import CodeInterpreterSettings
from antiphon.tools.code_interpreter.machine import Machine


@pytest.mark.parametrize("why", [asyncio.CancelledError(), OSError("no more processes")])
async def test_a_start_that_is_given_up_closes_its_socket(
    why: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise why

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    (tmp_path / "scratch").mkdir()
    started = Machine(tmp_path, CodeInterpreterSettings(), 99, "memory")
    with pytest.raises(type(why)):
        await started.start("python3")
    assert started._control is not None and started._control.fileno() == -1
