"""Maps chat function names to Responses tools and back, for one request.

This module makes the names that chat servers see, and finds the tool that a call names. `chat/tools.py` makes the
declarations of tools, and `translation/events/builder.py` the items of calls.

Chat servers know only functions with a flat name of at most 64 characters. Responses has several kinds of tools, and
namespaces. Antiphon shortens a name that does not fit, and appends a hash of the whole name. Therefore the same tool
has the same name in every request.

Invariant: within one request a chat name means one tool, and every tool has one chat name.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from msgspec import Raw

from antiphon.errors import wrong_value

_MAX_LENGTH: Final = 64
_HASH: Final = 8
_LONGEST_CALL_ID: Final = 40
_NINE: Final = re.compile(r"[a-zA-Z0-9]{9}")
_UNFIT: Final = re.compile(r"[^a-zA-Z0-9_-]")


class CallKind(StrEnum):
    """The kind of item that a call becomes. The values are item types, except for a tool search that Antiphon itself
    performs."""

    FUNCTION = "function_call"
    CUSTOM = "custom_tool_call"
    LOCAL_SHELL = "local_shell_call"
    SHELL = "shell_call"
    APPLY_PATCH = "apply_patch_call"
    TOOL_SEARCH = "tool_search_call"
    FILE_SEARCH = "file_search_call"
    WEB_SEARCH = "web_search_call"
    CODE_INTERPRETER = "code_interpreter_call"
    MCP = "mcp_call"
    HOSTED_TOOL_SEARCH = "hosted_tool_search"


HOSTED_KINDS: Final = frozenset(
    {
        CallKind.FILE_SEARCH,
        CallKind.WEB_SEARCH,
        CallKind.CODE_INTERPRETER,
        CallKind.MCP,
        CallKind.HOSTED_TOOL_SEARCH,
    }
)
"""The kinds of calls that Antiphon runs itself."""


@dataclass(frozen=True, slots=True)
class CallTarget:
    """A tool, with the name and namespace that the client knows. `told_plain` is true if the declaration asks for
    encrypted arguments. The items of the tool's calls then state that the arguments are not encrypted."""

    kind: CallKind
    name: str
    namespace: str | None = None
    told_plain: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class HostedFunction:
    """The function that the model sees for a hosted tool. `parameters` is a JSON schema.

    - `approval` is true if the sidecar asks the client before it runs a call.
    - `deferred` is true if, in a request with tool search, the model sees the function only after a search has found
      it.
    - `read_only` is true if a call changes nothing outside this gateway. The sidecar may retry such a call. The sidecar
      sends a call of any other function at most once.
    """

    kind: CallKind
    name: str
    description: str
    parameters: Raw
    namespace: str | None = None
    approval: bool = False
    deferred: bool = False
    read_only: bool = False

    @property
    def target(self) -> CallTarget:
        """The tool to which a call of this function belongs."""
        return CallTarget(self.kind, self.name, self.namespace)


def flat_name(name: str, namespace: str | None = None) -> str:
    """Return the chat name of a tool: at most 64 letters, digits, `_` and `-`."""
    whole = name if namespace is None else f"{namespace}__{name}"
    fit = _UNFIT.sub("_", whole)
    if fit == whole and len(whole) <= _MAX_LENGTH:
        return whole
    digest = hashlib.sha256(f"{namespace or ''}\0{name}".encode()).hexdigest()[:_HASH]
    return f"{fit[: _MAX_LENGTH - _HASH - 1]}_{digest}"


def fitting_call_id(call_id: str, *, nine: bool = False) -> str:
    """Return the id if the chat server accepts its length, or else a replacement. The same id always gets the same
    replacement, so a call and its output keep matching ids.

    OpenAI's chat API accepts at most 40 characters, but other gateways and Antiphon make longer ids. If `nine` is true,
    the server accepts only ids of exactly nine letters and digits.
    """
    if _NINE.fullmatch(call_id) if nine else len(call_id) <= _LONGEST_CALL_ID:
        return call_id
    digest = hashlib.sha256(call_id.encode("utf-8", "replace")).hexdigest()
    return digest[:9] if nine else f"call_{digest[:32]}"


class ToolMap:
    """The tools of one request, and which of them the model may call.

    - `callable` holds the chat names that the model may call. If `callable` is None, the model may call every name.
    - `required` is true if the model must call a tool.
    - `single` is true if one answer may contain at most one call.
    - `call_ids` are the ids of the calls in the history.
    - `unhurried` are the chat names of functions whose output may come in a later request.
    - `declared` are the chat names of all tools that the request declares.
    """

    def __init__(self) -> None:
        self._targets: dict[str, CallTarget] = {}
        self.callable: frozenset[str] | None = None
        self.required = False
        self.single = False
        self.call_ids: set[str] = set()
        self.unhurried: set[str] = set()
        self.declared: set[str] = set()

    def add(self, target: CallTarget, where: str) -> str:
        """Add a tool. Returns the tool's chat name. Raises `InvalidRequest` when another tool already has the same chat
        name."""
        chat_name = flat_name(target.name, target.namespace)
        self.declared.add(chat_name)
        known = self._targets.setdefault(chat_name, target)
        if known != target:
            raise wrong_value(
                f"Two tools would have the same name {chat_name!r} for the model; rename one of them.", where
            )
        return chat_name

    def remember(self, target: CallTarget) -> None:
        """Add a tool that the history calls and the request may no longer declare. A declared tool with the same name
        takes precedence."""
        self._targets.setdefault(flat_name(target.name, target.namespace), target)

    def target(self, chat_name: str) -> CallTarget:
        """Return the tool that a call names. A name that the request does not declare counts as a function, because the
        client may know that function."""
        return self._targets.get(chat_name) or CallTarget(CallKind.FUNCTION, chat_name)

    def may_call(self, chat_name: str) -> bool:
        """Whether the request's tool_choice lets the model call this tool."""
        return self.callable is None or chat_name in self.callable
