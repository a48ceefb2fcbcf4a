"""The names that a tool or a profile from another package imports, and the only ones with a promise.

Lives here: re-exports, and nothing else. Not here: loading packages (`app/extensions.py`), the tools and profiles that
are part of Antiphon. How to write a package: docs/how-to/extensions.md.

The promise, for versions 0.x:

- Every name in `__all__` stays until 1.0, with its parameters, fields and flags. A new version may add names,
  parameters and fields. New parameters and fields come last and have a default.
- The entry point groups `antiphon.tools` and `antiphon.profiles` stay. So do the attributes `types` and
  `settings_model` of a tool, and its methods `prepare`, `run` and `aclose`.
- Everything else in the package `antiphon` may change in any version.

`tests/integration/test_extensions.py` holds the list of names and fields. A change that breaks the promise fails there.

A tool, in short:

- `ServerTool` is the protocol of a tool. A class with these members is enough; it need not inherit.
- `HostedTool` is one declaration in a request, and `read_declared` reads it into a struct of the tool's.
- `PreparedTool` holds the functions that the model sees, each a `HostedFunction`. Its `kind` is `CallKind.MCP`.
- `HostedCall` is one call by the model. `read_arguments` reads its arguments.
- `ToolResult` answers a call. `Source` is a place that the model may cite.
- `ToolFailed` tells the model that a call failed. `InvalidRequest` tells the client that a declaration is wrong.

A profile is an `UpstreamProfile`. `on_models` narrows it for some models.
"""

from __future__ import annotations

from antiphon.engine.ports.hosted_tools import (
    HostedCall,
    HostedFunction,
    HostedTool,
    PreparedTool,
    Source,
    ToolResult,
)
from antiphon.errors import ApiError, InvalidRequest
from antiphon.tools.box import ServerTool, ToolFailed
from antiphon.tools.declared import read_arguments, read_declared
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.profiles.profile import on_models
from antiphon.translation.tool_map import CallKind

__all__ = [
    "ApiError",
    "CallKind",
    "HostedCall",
    "HostedFunction",
    "HostedTool",
    "InvalidRequest",
    "PreparedTool",
    "ServerTool",
    "Source",
    "ToolFailed",
    "ToolResult",
    "UpstreamProfile",
    "on_models",
    "read_arguments",
    "read_declared",
]
