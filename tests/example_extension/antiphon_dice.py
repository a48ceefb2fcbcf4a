"""A tool and a profile for Antiphon in a package of their own: the example of docs/how-to/extensions.md.

Requests declare the tool as `{"type": "dice", "sides": 6}`; the model is shown a function, and clients see its calls as
items of the type `mcp_call`, which they know.
"""

from __future__ import annotations

import secrets

from msgspec import Raw, Struct

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import InvalidRequest
from antiphon.tools.declared import read_declared
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.tool_map import CallKind, HostedFunction

ACME = UpstreamProfile("acme", title="Acme's server", hosts=("*.acme.example",), stream_usage=False)
"""What is special about a chat server; `profile: acme`, or chosen by the host's name."""


class _Declaration(Struct):
    sides: int = 6


class Dice:
    """The tool: made once per process, without arguments."""

    types = frozenset({"dice"})

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the declaration, and say what the model is shown. An `ApiError` is the client's answer."""
        sides = read_declared(tool, _Declaration).sides
        if sides < 2:
            where = f"tools[{tool.index}].sides"
            raise InvalidRequest(f"Invalid '{where}': a die has at least two sides.", param=where, code="invalid_value")
        parameters = Raw(b'{"type":"object","properties":{},"additionalProperties":false}')
        function = HostedFunction(CallKind.MCP, "roll", f"Roll a die of {sides} sides.", parameters, namespace="dice")
        return PreparedTool(tool, (function,))

    async def run(self, call: HostedCall) -> ToolResult:
        """One call of the model: what it reads, and what the item holds. `ToolFailed` is a failure the model reads."""
        rolled = str(1 + secrets.randbelow(read_declared(call.tool, _Declaration).sides))
        return ToolResult(call.call_id, rolled, {"output": rolled})

    async def aclose(self) -> None:
        """Nothing is held."""
