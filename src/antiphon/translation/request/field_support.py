"""Defines the table of request fields, tools and items. For each of them, the table says how Antiphon treats it with a
given profile.

The docs page `docs/reference/compatibility.md` and the endpoint `GET /v1/antiphon/capabilities` show this table.

This module has the rows of every `include` value, tool, form of `tool_choice` and content part. `fields.py` has the
rows of the fields, and `translation/item_kinds.py` the rows of the items.

Invariant: the table agrees with the code that handles the fields, tools and items.
`tests/unit/translation/test_field_support.py` sends a request for each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from antiphon.translation.item_kinds import ITEMS
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.profiles.profile import IGNORED, SENT, Rule, Support, handled, ignored, rejected, sent
from antiphon.translation.request.fields import FIELDS, INCLUDES, OF_CHAT
from antiphon.translation.request.parameters import PARAMETERS
from antiphon.translation.request.tool_choice import MODES
from antiphon.translation.request.tools import UNNAMED, WEB_SEARCHES

_HOSTED: Final = ignored(
    "Antiphon cannot run this hosted tool and drops it; with `tools.unavailable: refuse` the request gets a 400"
)
_NOT_HERE: Final = rejected("Antiphon cannot run this hosted tool")
_REFUSED_TOOL: Final = rejected(
    "error code `unsupported_tool` unless the settings enable the tool, because without the tool the answer "
    "would be wrong"
)
_SET_UP: Final = ignored(
    "Antiphon drops the tool (a 400 with `tools.unavailable: refuse`) unless the settings enable it"
)
_CHOSEN: Final = rejected("Antiphon accepts the choice if the settings enable the tool")
HOSTED_SUPPORT: Final = handled("Antiphon runs the tool between two turns of the model")
"""How Antiphon treats a hosted tool that the operator has enabled. The value also applies to the tool's items, its
`include` values and its form of `tool_choice`."""
_FUNCTION: Final = handled("the model gets a function; Antiphon returns its calls as items of the tool's type")
_LATER: Final = handled(
    "Antiphon gives a call without output a placeholder output; when the real output arrives, Antiphon repeats the call"
)
_IN_CHAT: Final = rejected("a field of Chat Completions; the error message names the field to use")
_UNKNOWN: Final = ignored("with the setting `strict` the request gets a 400")


def _parameter(name: str) -> Rule:
    def decide(profile: UpstreamProfile) -> Support:
        if name not in profile.parameters:
            return IGNORED
        renamed = name == "seed" and profile.seed_field != name
        return sent(f"`{profile.seed_field}`" if renamed else "")

    return decide


def _named_choice(profile: UpstreamProfile) -> Support:
    if profile.named_tool_choice == "native":
        return SENT
    return handled("Antiphon shows the model only the named tool, and requires a call")


def _strict(profile: UpstreamProfile) -> Support:
    return SENT if profile.strict_tools else IGNORED


def _images(profile: UpstreamProfile) -> Support:
    return sent("as `image_url`") if profile.images else rejected("the chat server accepts only text")


def _file(profile: UpstreamProfile) -> Support:
    if profile.files == "part":
        return sent("Antiphon sends text files as text, and other files as a `file` part")
    return handled("Antiphon sends text files as text, and answers 400 for other files")


def _image_by_id(profile: UpstreamProfile) -> Support:
    return (
        handled("Antiphon reads the image from `/v1/files`, and sends a data URL")
        if profile.images
        else _images(profile)
    )


def _audio(profile: UpstreamProfile) -> Support:
    return SENT if profile.audio_input else rejected("the chat server accepts no audio")


_NEVER_HERE: Final = ("image_generation", "computer", "computer_use_preview", "programmatic_tool_calling")


def _all(group: str, names: Iterable[str], rule: Rule) -> dict[str, Rule]:
    """Return the same rule for several names of a group."""
    return {f"{group}.{name}": rule for name in names}


_TABLE: Final[dict[str, dict[str, Rule]]] = {
    "Fields": {
        **{name: rule for row in FIELDS.values() for name, rule in row.rules().items()},
        "extra_body": handled("Antiphon treats the members of `extra_body` as top-level fields of the request"),
        "any other field": ignored(
            "with the setting `field_allow` Antiphon sends the field; with the setting `strict` the request gets a 400"
        ),
        **dict.fromkeys(OF_CHAT, _IN_CHAT),
    },
    "Sampling, templates, guided decoding": {name: _parameter(name) for name in PARAMETERS},
    "Values of `include`": {
        **{f"include:{name}": rule for name, rule in INCLUDES.items()},
        "any other value of `include`": _UNKNOWN,
    },
    "Tools": {
        "tools.function": SENT,
        "tools.function.strict": _strict,
        "tools.function.async": _LATER,
        "tools.function.output_schema": IGNORED,
        "tools.function.allowed_callers": ignored(
            "Antiphon runs no programs, so it drops a tool whose `allowed_callers` lack `direct`"
        ),
        "tools.custom": handled(
            "the model gets a function with one string parameter; the description contains a grammar, which Antiphon "
            "does not enforce"
        ),
        "tools.custom.async": _LATER,
        "tools.namespace": handled(
            "the model gets functions named `namespace__name`; Antiphon restores `namespace` in the calls"
        ),
        "tools.local_shell": _FUNCTION,
        "tools.shell": handled(
            "the model gets a shell function, whose description lists the tool's `skills`; Antiphon drops a shell tool "
            "that requests OpenAI's container"
        ),
        "tools.apply_patch": _FUNCTION,
        "tools.tool_search": handled(
            "the model gets a function; with `execution: client` the client runs the search, otherwise Antiphon runs it"
        ),
        **_all("tools", (*WEB_SEARCHES, "file_search"), _SET_UP),
        **_all("tools", _NEVER_HERE, _HOSTED),
        **_all("tools", ("code_interpreter", "mcp"), _REFUSED_TOOL),
        "any other tool": _UNKNOWN,
        "any other member of a tool": _UNKNOWN,
    },
    "Forms of `tool_choice`": {
        **_all("tool_choice", MODES, SENT),
        **_all("tool_choice", ("function", "custom", *UNNAMED), _named_choice),
        "tool_choice.allowed_tools": handled(
            "Antiphon shows the model only these tools, and drops calls of other tools"
        ),
        **_all("tool_choice", ("file_search", "web_search_preview", "web_search_preview_2025_03_11"), _CHOSEN),
        **_all("tool_choice", ("computer", "computer_use", "computer_use_preview", "image_generation"), _NOT_HERE),
        **_all("tool_choice", ("code_interpreter", "mcp"), _CHOSEN),
        "tool_choice.programmatic_tool_calling": _NOT_HERE,
    },
    "Items of `input`": {
        **{f"input.{name}": kind.support for name, kind in ITEMS.items() if kind.support is not None},
        "any other item": _UNKNOWN,
        "any other member of an item": ignored(
            "with the setting `strict` the request gets a 400; the model gets all members of items of hosted tools"
        ),
    },
    "Content parts": {
        "content.input_text": SENT,
        "content.output_text": SENT,
        "content.refusal": sent("Antiphon sends the refusal as text of the assistant"),
        "content.input_image.image_url": _images,
        "content.input_image.file_id": _image_by_id,
        "content.input_file.file_data": _file,
        "content.input_file.file_url": handled(
            "Antiphon fetches the file from public addresses only, and treats the file like "
            "`content.input_file.file_data`"
        ),
        "content.input_file.file_id": handled(
            "Antiphon reads the file from `/v1/files`, and treats the file like `content.input_file.file_data`"
        ),
        "content.input_audio": _audio,
        "any other part": _UNKNOWN,
        "any other member of a part": _UNKNOWN,
    },
}

GROUPS: Final[dict[str, tuple[str, ...]]] = {group: tuple(rows) for group, rows in _TABLE.items()}
"""The names of all rows of the support table, by group. The order is the order of the documentation."""

_RULES: Final = {name: rule for rows in _TABLE.values() for name, rule in rows.items()}


def all_names() -> Iterator[str]:
    """Return every name in the table."""
    return iter(_RULES)


def support_of(profile: UpstreamProfile, name: str, *, context_tokens: int | None = None) -> Support:
    """Return how Antiphon treats the request part `name` for an upstream with this profile. `context_tokens` is the
    model's context size, if the settings contain it. Raises KeyError for a name that is not in the table."""
    if name == "truncation.auto" and context_tokens is not None:
        return handled(f"Antiphon drops the oldest turns beyond about {context_tokens} tokens")
    rule = _RULES[name]
    return rule if isinstance(rule, Support) else rule(profile)
