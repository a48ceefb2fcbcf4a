"""structlog without Rich, which it otherwise imports wherever that is installed.

Rich, and Pygments behind it, draw tracebacks on a terminal; ours are plain text, so that redaction sees them. They cost
60 ms and 8 MiB in each process, and come with packages that have nothing to do with us.

Invariant: whoever starts a process imports this before anybody imports structlog. Rich itself stays as it was.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import cast

if "structlog" not in sys.modules and "rich" not in sys.modules:
    # A module that is None cannot be imported, and structlog does without it.
    sys.modules["rich"] = cast(ModuleType, None)
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
