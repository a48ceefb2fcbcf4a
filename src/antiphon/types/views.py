"""Typed views of JSON objects: each names only the fields that one step reads.

Lives here: their shapes, each for the one module that decodes it. Not here: their translation, and objects that are
read whole (`request.py`, `items.py`, `tools.py`, `chat.py`).

msgspec reads the annotations of these classes at run time. So they stand in a separate module, which a compiler of
Python would leave as it is (docs/explanation/performance.md).
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT
from antiphon.types.request import TextFormat


class OnlyModel(Struct):
    """A request's body, read only for its model."""

    model: str | None = None


class Manner(Struct):
    """The form of the answer that the client wants."""

    stream: bool | None = None
    background: bool | None = None


class ConversationName(Struct):
    """`conversation` of a request, as an object."""

    id: str


class PromptMember(Struct):
    """`prompt` of a request."""

    id: str
    version: str | int | None = None
    variables: dict[str, Raw] | None = None


class PromptValue(Struct):
    """A value for a prompt's variable, as an object: a part of a message."""

    type: str
    text: str | None = None


class PromptMessage(Struct):
    """A message of a template, with the keys that are looked at; the others stay in `source`."""

    type: str = "message"
    role: str = ""
    content: Raw = Raw()


class ReasoningUpdate(Struct):
    """`reasoning` of a `configuration_update`."""

    effort: str | UnsetType | None = UNSET


class TextUpdate(Struct):
    """`text` of a `configuration_update`."""

    format: TextFormat | UnsetType | None = UNSET


class ConfigurationUpdate(Struct):
    """The parts of a `configuration_update` that have an effect."""

    reasoning: ReasoningUpdate | None = None
    text: TextUpdate | None = None


class KeptConfiguration(Struct):
    """The same, for the names of all its settings."""

    reasoning: dict[str, Raw] | None = None
    text: dict[str, Raw] | None = None


class ToolEnvironment(Struct):
    """`environment` of a shell tool."""

    type: str | None = None


class CustomFormat(Struct):
    """`format` of a custom tool."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class Skill(Struct):
    """A skill of a shell tool's environment."""

    name: str
    description: str | None = None
    path: str | None = None


class Skills(Struct):
    """`environment` of a shell tool, for its skills."""

    skills: list[Skill] | None = None


class AllowedTools(Struct):
    """`allowed_tools` of an MCP tool."""

    allowed_tools: Any = None


class NamedTool(Struct):
    """A tool as a `tool_choice` names it."""

    type: str | None = None
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None


class AnyToolChoice(Struct):
    """`tool_choice`, as an object of any kind."""

    type: str
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None
    mode: str | None = None
    tools: list[NamedTool] | None = None
    function: Raw = ABSENT


class FilePart(Struct):
    """A part of a content, for the file it names."""

    type: str | None = None
    file_url: str | None = None
    file_id: str | None = None


class StoredParts(Struct):
    """An item of history, for the contents that have parts."""

    content: Raw = ABSENT
    output: Raw = ABSENT


class AgentNames(Struct):
    """An item between agents, for who speaks to whom."""

    author: str | None = None
    recipient: str | None = None


class AgentPart(Struct):
    """A part of such an item."""

    type: str | None = None
    encrypted_content: Raw = ABSENT


class SaidText(Struct):
    """A part, for its text."""

    text: Raw = ABSENT


class ChatImage(Struct):
    """`image_url` of a part in Chat Completions' form."""

    url: Raw = ABSENT
    detail: str | None = None


class PlainMessage(Struct):
    """A system, developer or user message."""

    role: str
    content: Raw


class SealedReasoning(Struct):
    """The content of an encrypted reasoning item, or of a compaction."""

    text: Raw = ABSENT
    details: list[Raw] = []
    call: Raw = ABSENT


class SealedCompaction(Struct):
    """The content of a compaction: the summary, the kept items, and whether it covers all earlier items."""

    text: Raw = ABSENT
    items: list[Raw] = []
    covers: bool = False


class ShellAction(Struct):
    """`action` of a shell call."""

    commands: list[str] = []


class PatchOperation(Struct, omit_defaults=True):
    """`operation` of a patch call."""

    type: str
    diff: str | None = None
    path: str = ""


class PassedResponse(Struct):
    """A response inside of an event, for its usage."""

    usage: Raw = Raw()


class PassedAnswer(Struct):
    """A chat completion, a chunk, a response, a list of embeddings; or an event with a response in it."""

    usage: Raw = Raw()
    response: PassedResponse | None = None


class CodeArguments(Struct):
    """Arguments of a call of the code interpreter."""

    code: str = ""


class RanInContainer(Struct):
    """A code interpreter call, for where it ran."""

    container_id: str | None = None


class QueuedCredentials(Struct):
    """An MCP tool, for what opens its server."""

    authorization: str | None = None
    headers: Raw = ABSENT


class Approval(Struct):
    """The members of approval requests, approval responses and lists of tools that the code reads."""

    approval_request_id: str | None = None
    approve: bool | None = None
    name: str = ""
    server_label: str = ""
    arguments: str = ""
