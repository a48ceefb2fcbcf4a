"""Defines the plain values that the steps of the translation pass to each other.

The classes have no methods. The package `antiphon.types` defines the JSON formats.

msgspec builds these classes from their annotations at run time. Therefore the classes are in a separate module, which
the compiled build leaves as Python (docs/explanation/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import UNSET, Raw, Struct, UnsetType, field

from antiphon.errors import ApiError
from antiphon.translation.tool_map import ToolMap
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.response import MissReason
from antiphon.types.tolerance import Tolerance

Seal = Callable[[bytes], str]
"""Makes a reasoning item's `encrypted_content` from its payload."""


class Ending(Struct, frozen=True):
    """How the upstream's answer ended. `status` is completed, incomplete or failed.

    `reason` is set if `status` is incomplete (max_output_tokens, content_filter). `code` and `message` are set if
    `status` is failed. `error` is the upstream's error, if the upstream sent an error. A client that has not yet
    received the headers of the HTTP response gets this error.
    """

    status: str
    reason: str = ""
    code: str = ""
    message: str = ""
    error: ApiError | None = None


class BuilderOptions(Struct, frozen=True):
    """The options of the builder that makes a response's events and items.

    - `events`: whether the builder emits events. A client that wants one JSON answer needs no events.
    - `error_events`: whether a failed response also emits an `error` event.
    - `reasoning_as_summary` and `open_responses_names` choose the form of reasoning.
    - `obfuscate`: whether deltas get padding that hides their length.
    - `seal` makes a reasoning item's `encrypted_content` from its payload.
    - `max_bytes` limits all text of the response.
    - `first_number` is the next sequence number of a stream that `ResponseBuilder.queue` has begun. If `first_number`
      is 0, the builder begins a new stream.
    """

    events: bool
    error_events: bool = True
    reasoning_as_summary: bool = False
    open_responses_names: bool = False
    obfuscate: bool = False
    seal: Seal | None = None
    max_bytes: int = 1 << 26
    first_number: int = 0


class ItemSources(Struct, frozen=True):
    """The sources of the content that items refer to. `unseal` decrypts content that Antiphon encrypted. The arguments
    of `unseal` are the encrypted text, and the request parameter that an error names. `files` maps URLs and ids to the
    fetched files, or to the error of a failed fetch. `tolerance` decides whether unknown parts are ignored or
    refused."""

    unseal: Callable[[str, str], bytes]
    files: Mapping[str, FetchedFile | ApiError] = {}
    tolerance: Tolerance = field(default_factory=Tolerance)


class ChatTranslation(Struct):
    """A translated request: the chat request's body, the map from chat names to tools, and the names of request fields
    without effect.

    `sent` has the paths of the first `image` and the first `audio` in the request. Error messages name such a path if
    the model refuses images or audio.
    """

    body: bytes
    tools: ToolMap
    ignored: tuple[str, ...] = ()
    sent: dict[str, str] = {}


class ChatTools(Struct):
    """The tools of one request as chat functions, and the map from chat names to tools. `strict_left_out` is true if
    Antiphon removed `strict` from a function, because the server does not accept that key."""

    map: ToolMap
    declarations: list[Raw]
    choice: Raw | UnsetType = UNSET
    strict_left_out: bool = False


class Turn(Struct):
    """The output of one assistant turn. The turn becomes one assistant message and the tool messages of its calls.

    `answer` is the number of the model's answer that the turn belongs to. A new answer begins, and the number
    increases, when output of the model follows input of the client. `round` identifies the model output that contained
    the turn's hosted calls (`ShownCall.round`).
    """

    text: list[bytes] = []
    reasoning: list[bytes] = []
    details: list[Raw] = []
    calls: list[tuple[str, str, Raw]] = []
    signatures: dict[int, Raw] = {}
    outputs: dict[int, bytes] = {}
    images: list[Raw] = []
    answer: int = 0
    round: str = ""


class PromptReference(Struct, frozen=True):
    """The field `prompt` of a request: the prompt's id, the version, and the values of the variables. A version of None
    means the default version."""

    id: str
    version: int | None
    variables: dict[str, Raw]


class PromptTemplate(Struct, frozen=True):
    """A version of a prompt. `body` is the prompt's template, a JSON object."""

    version: int
    body: bytes


class CachedPrompt(Struct, frozen=True):
    """The parts of a model call that decide whether the server can reuse the cache of an earlier prompt. The values
    have the form in which the server gets them.

    A part that the server does not get has its default value. `tools` holds the tools in order, each as canonical JSON.
    `tool_choice` is set only if Antiphon hides tools from the model because of the choice. `compactions` are the
    compactions whose summaries are in the prompt. `messages` are the chat messages in order, as JSON. `service_tier` is
    `auto` if the tier is unknown. `tokens` is the estimated size of the whole prompt.
    """

    model: str
    messages: tuple[bytes, ...]
    tokens: int
    prompt_cache_key: str | None = None
    tools: tuple[bytes, ...] = ()
    tool_choice: bytes = b""
    text_format: bytes = b""
    reasoning_effort: str | None = None
    verbosity: str | None = None
    compactions: tuple[str, ...] = ()
    service_tier: str = "auto"


class PromptDifference(Struct, frozen=True):
    """The first difference between two prompts. `reason` is a reason of `CacheMiss`.

    `place` is the path of the difference, for example `tools[2]` or `messages[3]`. `missed` is the estimated number of
    tokens of the later prompt that come after the difference.
    """

    reason: MissReason
    place: str
    missed: int


class ServerSentEvent(Struct, frozen=True, gc=False):
    """One server-sent event. `type` is empty when the event has no `event` field."""

    type: bytes
    data: bytes
