"""A toolbox for tests, whose tools do nothing and return scripted results."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from msgspec import Raw

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.errors import ApiError
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.items import McpListTools

_QUERY = Raw(b'{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}')
_ANYTHING = Raw(b'{"type":"object","properties":{}}')


class ScriptedTools:
    """The toolbox. `answer` returns the result of a call. Without it every call succeeds with an empty result."""

    types = frozenset({"file_search", "web_search", "code_interpreter", "mcp", "tool_search"})

    def __init__(
        self, answer: Callable[[HostedCall], ToolResult] | None = None, *, refuses: ApiError | None = None
    ) -> None:
        self._answer = answer or (lambda call: ToolResult(call.call_id, "nothing", {}))
        self._refuses = refuses
        self.calls: list[HostedCall] = []

    def prepare_now(self, tools: tuple[HostedTool, ...]) -> tuple[PreparedTool, ...] | ApiError:
        return self._refuses or tuple(self._prepared(tool) for tool in tools)

    def run_now(self, call: HostedCall) -> ToolResult:
        self.calls.append(call)
        return self._answer(call)

    async def prepare(
        self, owner: str, response_id: str, tools: tuple[HostedTool, ...]
    ) -> tuple[PreparedTool, ...] | ApiError:
        return self.prepare_now(tools)

    async def run(self, call: HostedCall) -> ToolResult:
        return self.run_now(call)

    def _prepared(self, tool: HostedTool) -> PreparedTool:
        declared: dict[str, Any] = json.loads(tool.declaration)
        if tool.type == "mcp":
            label = declared["server_label"]
            function = HostedFunction(
                CallKind.MCP,
                "roll",
                "Roll dice.",
                _ANYTHING,
                namespace=label,
                approval=declared.get("require_approval") != "never",
                deferred=bool(declared.get("defer_loading")),
            )
            listed = McpListTools(
                id="mcpl_1", server_label=label, tools=Raw(b'[{"name":"roll","input_schema":{"type":"object"}}]')
            )
            return PreparedTool(tool, (function,), (listed,))
        searches = tool.type == "tool_search"
        kind = CallKind.HOSTED_TOOL_SEARCH if searches else CallKind(f"{tool.type}_call")
        fields = {"container_id": "cntr_1"} if kind is CallKind.CODE_INTERPRETER else {}
        return PreparedTool(tool, (HostedFunction(kind, tool.type, "Does it.", _QUERY),), fields=fields)
