"""Plain values that the steps of the translation pass to each other.

Lives here: plain values without a method. Not here: their makers (each value names its maker), and the wire format
(`antiphon.types`).

msgspec makes these classes of their annotations at run time. So they stand in a separate module, which a compiler of
Python would leave as it is (docs/explanation/performance.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import UNSET, Raw, Struct, UnsetType, field

from antiphon.errors import ApiError
from antiphon.translation.tool_map import ToolMap
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.tolerance import Tolerance

Seal = Callable[[bytes], str]
"""Makes a reasoning item's `encrypted_content` of its payload."""


class Ending(Struct, frozen=True):
    """How the upstream's answer ended: `status` is completed, incomplete or failed.

    `reason` belongs to incomplete (max_output_tokens, content_filter); `code` and `message` belong to failed. `error`
    is the upstream's error, if it gave one: a client without a response head yet gets that.
    """

    status: str
    reason: str = ""
    code: str = ""
    message: str = ""
    error: ApiError | None = None


class BuilderOptions(Struct, frozen=True):
    """`events`: whether events are wanted at all (a JSON client wants none), `error_events`: whether `error` is one.

    `reasoning_as_summary` and `open_responses_names` choose the form of reasoning; `obfuscate` pads deltas to hide
    their length; `seal` makes a reasoning item's `encrypted_content` of its payload; `max_bytes` bounds all text of
    the response; `first_number` is where the numbers go on of a stream that was begun already (`queue`)."""

    events: bool
    error_events: bool = True
    reasoning_as_summary: bool = False
    open_responses_names: bool = False
    obfuscate: bool = False
    seal: Seal | None = None
    max_bytes: int = 1 << 26
    first_number: int = 0


class ItemSources(Struct, frozen=True):
    """The sources of the content that items refer to. `unseal` decrypts Antiphon's encrypted contents (text, param).
    `files` are the files fetched by URL, or the reason of the failure. `tolerance` decides about unknown parts."""

    unseal: Callable[[str, str], bytes]
    files: Mapping[str, FetchedFile | ApiError] = {}
    tolerance: Tolerance = field(default_factory=Tolerance)


class ChatTranslation(Struct):
    """The chat request's body, what calls in its answer mean, and what of the request the upstream cannot do.

    `sent`: where the first `image` and the first `audio` of the request stand, which some models do not take.
    """

    body: bytes
    tools: ToolMap
    ignored: tuple[str, ...] = ()
    sent: dict[str, str] = {}


class ChatTools(Struct):
    """The tools of one request in chat form, what their calls mean, and whether a `strict` was left out."""

    map: ToolMap
    declarations: list[Raw]
    choice: Raw | UnsetType = UNSET
    strict_left_out: bool = False


class Turn(Struct):
    """The output of one assistant turn, until it becomes one message and its tool messages.

    `answer`: in which answer of the model, counted by what clients said in between; `round`: that of its hosted calls.
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
    """A request's `prompt`: which version of which prompt (None: the default one), and the values of its variables."""

    id: str
    version: int | None
    variables: dict[str, Raw]


class PromptTemplate(Struct, frozen=True):
    """A version of a prompt: `body` is its template, a JSON object."""

    version: int
    body: bytes


class ServerSentEvent(Struct, frozen=True, gc=False):
    """One event: its `type` (empty when no `event` field was given) and its data."""

    type: bytes
    data: bytes
