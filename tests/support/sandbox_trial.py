"""Whether this machine can hold code in, for tests that are skipped where it cannot."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from antiphon.tools.code_interpreter.local import Trial, try_out


def trial(*given: Any, **named: Any) -> Trial:
    """`try_out`, waited for, whether an event loop runs here or not."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(try_out(*given, **named))).result()
