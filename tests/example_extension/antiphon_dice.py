"""A tool with settings and a profile for Antiphon in a separate package: the example of docs/how-to/extensions.md.

Requests declare the tool as `{"type": "dice", "sides": 20}`. The model sees a function, and clients see its calls as
items of the type `mcp_call`, which they know. Everything is imported from `antiphon.extension`.
"""

from __future__ import annotations

import secrets

from msgspec import Raw, Struct
from pydantic import BaseModel, Field, SecretStr

from antiphon.extension import (
    CallKind,
    HostedCall,
    HostedFunction,
    HostedTool,
    InvalidRequest,
    PreparedTool,
    ToolResult,
    UpstreamProfile,
    read_declared,
)

ACME = UpstreamProfile("acme", title="Acme's server", hosts=("*.acme.example",), stream_usage=False)
"""What is special about a chat server; `profile: acme`, or chosen by the host's name."""

_NO_PARAMETERS = Raw(b'{"type":"object","properties":{},"additionalProperties":false}')


class DiceSettings(BaseModel):
    """What an operator sets under `extensions.dice`."""

    sides: int = Field(default=6, ge=2)
    """Sides of a die whose request gives none."""
    seed: SecretStr | None = None
    """The tool does not use it. It shows that Antiphon hides a secret of a tool like its own secrets."""


class _Declaration(Struct):
    sides: int | None = None


class Dice:
    """The tool: Antiphon creates it once for each process, with its settings."""

    types = frozenset({"dice"})
    settings_model = DiceSettings

    def __init__(self, settings: DiceSettings) -> None:
        self._settings = settings

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        """Check the declaration and return what the model sees. An `ApiError` is the client's answer."""
        sides = self._sides(tool)
        if sides < 2:
            where = f"tools[{tool.index}].sides"
            raise InvalidRequest(f"Invalid '{where}': a die has at least two sides.", param=where, code="invalid_value")
        description = f"Roll a die of {sides} sides."
        function = HostedFunction(CallKind.MCP, "roll", description, _NO_PARAMETERS, namespace="dice")
        return PreparedTool(tool, (function,))

    async def run(self, call: HostedCall) -> ToolResult:
        """Run one call. The result has the text for the model and the fields of the item; `ToolFailed` is a failure
        that the model reads."""
        rolled = str(1 + secrets.randbelow(self._sides(call.tool)))
        return ToolResult(call.call_id, rolled, {"output": rolled})

    async def aclose(self) -> None:
        """Release resources: there are none."""

    def _sides(self, tool: HostedTool) -> int:
        declared = read_declared(tool, _Declaration).sides
        return self._settings.sides if declared is None else declared
