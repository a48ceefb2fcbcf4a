"""Defines types that decode only some fields of a JSON object, so that decoding is fast.

Each type is for one module, which needs only these fields. `request.py`, `items.py` and `chat.py` have the types of
objects that Antiphon decodes completely.

The compiled build (docs/explanation/performance.md) does not compile this module, because msgspec reads the annotations
of the types at run time.
"""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from antiphon.types.json import ABSENT
from antiphon.types.request import ReasoningOptions, TextFormat


class OnlyModel(Struct):
    """The body of a request, decoded only for its model."""

    model: str | None = None


class Manner(Struct):
    """The fields of a request that choose a stream or a whole body, and a background response or not."""

    stream: bool | None = None
    background: bool | None = None


class DeclaredTools(Struct):
    """A request's body, or one of its input items, decoded only for the tools that it declares."""

    tools: list[dict[str, object]] | None = None
    input: list[DeclaredTools] | str | None = None


class ConversationName(Struct):
    """The field `conversation` of a request, if it is an object and not an id."""

    id: str


class PromptMember(Struct):
    """The field `prompt` of a request."""

    id: str
    version: str | int | None = None
    variables: dict[str, Raw] | None = None


class PromptValue(Struct):
    """The value of a prompt's variable, if it is a content part and not a string."""

    type: str
    text: str | None = None


class PromptMessage(Struct):
    """A message of a prompt template."""

    type: str = "message"
    role: str = ""
    content: Raw = Raw()


class ReasoningUpdate(Struct):
    """The field `reasoning` of a `configuration_update` item."""

    effort: str | UnsetType | None = UNSET


class TextUpdate(Struct):
    """The field `text` of a `configuration_update` item."""

    format: TextFormat | UnsetType | None = UNSET


class ConfigurationUpdate(Struct):
    """The fields of a `configuration_update` item that have an effect."""

    reasoning: ReasoningUpdate | None = None
    text: TextUpdate | None = None


class KeptConfiguration(Struct):
    """A `configuration_update` item, decoded only for the names of all its settings."""

    reasoning: dict[str, Raw] | None = None
    text: dict[str, Raw] | None = None


class ToolEnvironment(Struct):
    """The field `environment` of a shell tool."""

    type: str | None = None


class CustomFormat(Struct):
    """The field `format` of a custom tool."""

    type: str
    syntax: str | None = None
    definition: str | None = None


class Skill(Struct):
    """A skill in a shell tool's `environment`."""

    name: str
    description: str | None = None
    path: str | None = None


class Skills(Struct):
    """The field `environment` of a shell tool, decoded only for its skills."""

    skills: list[Skill] | None = None


class AllowedTools(Struct):
    """The field `allowed_tools` of an MCP tool."""

    allowed_tools: object = None


class NamedTool(Struct):
    """The name of a tool inside a `tool_choice`."""

    type: str | None = None
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None


class AnyToolChoice(Struct):
    """The field `tool_choice`, if it is an object and not a string."""

    type: str
    name: str | None = None
    namespace: str | None = None
    server_label: str | None = None
    mode: str | None = None
    tools: list[NamedTool] | None = None
    function: Raw = ABSENT


class FilePart(Struct):
    """A content part, decoded only for the file to which it refers."""

    type: str | None = None
    file_url: str | None = None
    file_id: str | None = None


class StoredParts(Struct):
    """A stored item, decoded only for its content parts, which may refer to files."""

    content: Raw = ABSENT
    output: Raw = ABSENT


class AgentNames(Struct):
    """An `agent_message` item, decoded only for its sender and recipient."""

    author: str | None = None
    recipient: str | None = None


class AgentPart(Struct):
    """A content part of an `agent_message` item."""

    type: str | None = None
    encrypted_content: Raw = ABSENT


class SaidText(Struct):
    """An `agent_reasoning` item, decoded only for its text."""

    text: Raw = ABSENT


class ChatImage(Struct):
    """The field `image_url` of an image part of a chat request."""

    url: Raw = ABSENT
    detail: str | None = None


class PlainMessage(Struct):
    """A system, developer or user message of a chat request."""

    role: str
    content: Raw


class SealedReasoning(Struct):
    """The decrypted payload of a reasoning item's or compaction's `encrypted_content`, with the fields that a model
    call needs."""

    text: Raw = ABSENT
    details: list[Raw] = []
    call: Raw = ABSENT


class SealedCompaction(Struct):
    """The decrypted payload of a compaction. `text` is the summary, and `items` are the items that Antiphon keeps
    unchanged. `covers`: whether the summary replaces all earlier items of the conversation."""

    text: Raw = ABSENT
    items: list[Raw] = []
    covers: bool = False


class ShellAction(Struct):
    """The field `action` of a shell call."""

    commands: list[str] = []


class PatchOperation(Struct, omit_defaults=True):
    """The field `operation` of a patch call."""

    type: str
    diff: str | None = None
    path: str = ""


class StoredText(Struct):
    """The field `text` of a stored response."""

    format: Raw
    verbosity: str | None = None


class StoredSettings(Struct):
    """A stored response, decoded only for the fields on which its prompt depends."""

    model: str
    text: StoredText
    reasoning: ReasoningOptions
    instructions: Raw = ABSENT
    max_output_tokens: int | None = None
    prompt_cache_key: str | None = None
    service_tier: str = "auto"
    tool_choice: Raw = ABSENT
    tools: list[Raw] = []
    truncation: str = "disabled"


class ChatMessages(Struct):
    """A chat request, decoded only for its messages."""

    messages: list[Raw] = []


class PassedResponse(Struct):
    """A response object inside an event, decoded only for its token usage."""

    usage: Raw = Raw()


class PassedAnswer(Struct):
    """The body of an upstream's answer, decoded only for its token usage. The body is a chat completion, a chunk, a
    response, a list of embeddings, or an event that contains a response."""

    usage: Raw = Raw()
    response: PassedResponse | None = None


class CodeArguments(Struct):
    """The arguments of a code interpreter call."""

    code: str = ""


class RanInContainer(Struct):
    """A code interpreter call, decoded only for the id of its container."""

    container_id: str | None = None


class QueuedCredentials(Struct):
    """The declaration of an MCP tool, decoded only for the MCP server's credentials."""

    authorization: str | None = None
    headers: Raw = ABSENT


class Approval(Struct):
    """An approval request, an approval response or an `mcp_list_tools` item."""

    approval_request_id: str | None = None
    approve: bool | None = None
    name: str = ""
    server_label: str = ""
    arguments: str = ""
