"""Exports the public names for tools and profiles in other packages. Only these names stay compatible.

This module contains only re-exports. `app/extensions.py` loads the packages, and `docs/how-to/extensions.md` explains
how to write a package.

The promise of compatibility, for versions 0.x:

- Every name in `__all__` stays until 1.0, with its parameters, fields and flags. A new version may add names,
  parameters and fields. New parameters and fields come last and have a default.
- The entry point groups `antiphon.tools` and `antiphon.profiles` stay. The attributes `types` and `settings_model` of a
  tool and its methods `prepare`, `run` and `aclose` also stay.
- Everything else in the package `antiphon` may change in any version.

`tests/integration/test_extensions.py` lists the names and fields, and fails if a change breaks the promise.

The names that a tool uses:

- `ServerTool` is the protocol of a tool. A class that has the members of `ServerTool` need not inherit from
  `ServerTool`.
- `HostedTool` is the declaration of a tool in a request. `read_declared` parses the declaration into a struct that the
  tool defines.
- `PreparedTool` holds the functions that the model sees, each a `HostedFunction`. The `kind` of each function is
  `CallKind.MCP`.
- `HostedCall` is a call that the model makes. `read_arguments` parses the arguments of the call.
- `ToolResult` is the result of a call. `Source` is a document, such as a web page, that the model may cite.
- `ToolFailed` tells the model that a call failed. `InvalidRequest` tells the client that a declaration is wrong.

A tool has the attribute `types` and three coroutines (docs/how-to/extensions.md has a whole package):

    class Dice:
        types = frozenset({"dice"})

        async def prepare(self, owner, response_id, tool):
            return PreparedTool(tool, (HostedFunction(CallKind.MCP, "roll", "Roll a die.", SCHEMA, namespace="dice"),))

        async def run(self, call):
            return ToolResult(call.call_id, "You rolled 4.", {"output": "4"})

        async def aclose(self): ...

A profile is an `UpstreamProfile`. `on_models` declares the flags of a profile that differ for some models.
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
from antiphon.tools.box import ServerTool, ToolFailed, read_arguments, read_declared
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
