"""Decides whether this machine can run the sandbox, for tests that need it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from antiphon.tools.code_interpreter.local import Trial, try_out


def trial(*given: Any, **named: Any) -> Trial:
    """The result of `try_out`. Works inside and outside an event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(try_out(*given, **named))).result()
