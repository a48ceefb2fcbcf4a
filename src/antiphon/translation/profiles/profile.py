"""Defines the profile type: all flags that the translation may read about an upstream. The module also defines how
Antiphon can treat a part of a request.

This module has the flags, their defaults, and the changes for some models. The module also has the families of models.
A family's flags belong to the model (its chat template, its tokenizer) and not to the server. The module defines the
four kinds of support for a part of a request, and how a rule depends on the profile. `vendors.py` defines
one profile for each chat server. `translation/request/fields.py`, `translation/request/field_support.py` and
`translation/item_kinds.py` have the rows of the support table.

Invariants: the defaults work with every recorded server. A profile sets a flag only where its server needs another
value than the default. Every family names its evidence: a recording (under `tests/recordings/chat`) or a page that
documents it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_type_hints

import msgspec

from antiphon.translation.request.parameters import EVERY_PARAMETER


@dataclass(frozen=True, slots=True)
class ModelNote:
    """Flags that differ for some models. The flags apply to models whose name (in lower case) matches one of the glob
    patterns."""

    patterns: tuple[str, ...]
    changes: tuple[tuple[str, object], ...]

    def fits(self, model: str) -> bool:
        """Whether these changes apply to this model name (in lower case)."""
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)


def on_models(*patterns: str, **changes: object) -> ModelNote:
    """Return the flags that differ for models whose names match these glob patterns, for example `on_models("qwen/*",
    logprobs=False)`."""
    return ModelNote(patterns, tuple(changes.items()))


FAMILIES: tuple[ModelNote, ...] = (
    # The chat template opens the reasoning, so the answer holds only the closing tag.
    # azure/req_llm-azure-mai-ds-r1-multi-tool.
    on_models("*mai-ds-r1*", think="opened"),
    # "Tool call id was … but must be a-z, A-Z, 0-9, with a length of 9": this error comes from Mistral's API (code
    # 3280). The chat templates of Mistral's open models raise the same error, on every server that runs them;
    # github.com/ml-explore/mlx-lm/issues/1375.
    on_models("*mistral*", "*ministral*", "*mixtral*", "*codestral*", "*devstral*", "*magistral*", call_ids="nine"),
)


@dataclass(frozen=True, slots=True, eq=False)
class UpstreamProfile:
    """The fields that an upstream accepts, and how to read its answers.

    Identity:

    - `name` is the profile's name in settings, `title` the vendor's name for people.
    - `hosts` are globs of host names for which `auto` chooses the profile.
    - `owned_by` is the value in a server's list of models that identifies this server.
    - `server` is text in the response header `server`, in lower case, that identifies this server.

    Request:

    - `token_limit_field` is the chat field that carries `max_output_tokens`.
    - `developer_role` is the role that developer messages get.
    - `system_anywhere` says whether system and developer messages may follow other messages. If False, Antiphon moves
      later system text into the first system message, because many chat templates accept only one.
    - `reasoning_effort`, `verbosity`, `parallel_tool_calls`, `penalties` and `strict_tools` say whether Antiphon sends
      the field.
    - `effort_values` are the efforts that the server knows. Other efforts become the nearest known value. If
      `effort_values` is None, Antiphon sends every effort unchanged. The value `default` stands for every effort above
      `none`: some models can only switch reasoning on or off.
    - `structured_output` is the strongest form of `text.format` that the server accepts. If a request asks for a
      stronger form of `text.format`, Antiphon adds an instruction for the model.
    - `json_object` says whether the server also accepts the form `json_object`.
    - `json_object_schema` says whether the server obeys `json_object` only with a schema.
    - `named_tool_choice` says how a chat request names the tool that the model must call. With `required`, Antiphon
      sends only the chosen tool, and `tool_choice: required`.
    - `passed_fields` are the request fields that Antiphon forwards under their Responses name.
    - `parameters` are forwarded fields that the Responses API does not have (sampling, guided decoding).
    - `seed_field` is the server's name for `seed`.
    - `images`, `files` and `audio_input` say which content the server accepts. With `text`, Antiphon inserts text files
      as text, and refuses other files.
    - `call_ids` is the format of call ids that the server accepts (`nine`: exactly nine letters and digits).
    - `replay_reasoning` is the message key under which Antiphon sends earlier reasoning back.
    - `replay_details` says whether Antiphon sends `reasoning_details` back.
    - `replay_signatures` says whether Antiphon sends a call's `extra_content` back.

    Answer:

    - `logprobs` says whether the server returns log probabilities.
    - `end_without_finish` is the status of a stream that ends after useful output without a `finish_reason`.
    - `think` says where the answer's text contains reasoning. With `off`, the text contains no reasoning. With
      `tagged`, an answer may begin with reasoning between `<think>` and `</think>`. With `opened`, the reasoning ends
      at `</think>`, because the chat template wrote the opening tag.
    - `stream_usage` says whether Antiphon asks for usage in streams.

    `tokenizer` is the API by which the server counts the tokens of a request (`translation/chat/context_size.py`).

    `by_model` has the flags that differ for some models. `overrides` has the operator's flags (`with_flags`).

    Two profiles are equal only if they are the same object. This makes the cache of `for_model` fast, because a hash of
    all flags would cost too much for every request.
    """

    name: str
    title: str = ""
    hosts: tuple[str, ...] = ()
    owned_by: str = ""
    server: str = ""
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    developer_role: Literal["system", "developer"] = "system"
    system_anywhere: bool = False
    end_without_finish: Literal["failed", "completed"] = "failed"
    stream_usage: bool = True
    parallel_tool_calls: bool = True
    reasoning_effort: bool = True
    effort_values: tuple[str, ...] | None = None
    verbosity: bool = False
    penalties: bool = True
    logprobs: bool = True
    strict_tools: bool = True
    named_tool_choice: Literal["native", "required"] = "native"
    structured_output: Literal["json_schema", "json_object", "off"] = "json_schema"
    json_object: bool = True
    json_object_schema: bool = False
    images: bool = True
    files: Literal["part", "text"] = "part"
    audio_input: bool = False
    call_ids: Literal["any", "nine"] = "any"
    replay_reasoning: Literal["reasoning_content", "reasoning", "off"] = "reasoning_content"
    replay_details: bool = False
    replay_signatures: bool = False
    passed_fields: frozenset[str] = frozenset()
    parameters: frozenset[str] = EVERY_PARAMETER
    seed_field: str = "seed"
    think: Literal["off", "tagged", "opened"] = "tagged"
    tokenizer: Literal["none", "vllm", "llamacpp"] = "none"
    by_model: tuple[ModelNote, ...] = ()
    overrides: tuple[tuple[str, object], ...] = ()

    def serves(self, host: str) -> bool:
        """Whether this host name belongs to the vendor."""
        return any(fnmatchcase(host, pattern) for pattern in self.hosts)

    def for_model(self, model: str) -> UpstreamProfile:
        """Return this profile with the changes for one model. Returns the same object if no flag differs."""
        return _narrowed(self, model)


@lru_cache(maxsize=1024)
def _narrowed(profile: UpstreamProfile, model: str) -> UpstreamProfile:
    name = model.lower()
    changes: dict[str, Any] = {}
    # The vendor's notes come last and override those of the family, because a vendor knows its own models better.
    for note in (*FAMILIES, *profile.by_model):
        if note.fits(name):
            changes.update(note.changes)
    changes.update(profile.overrides)
    changes = {flag: value for flag, value in changes.items() if getattr(profile, flag) != value}
    return replace(profile, **changes) if changes else profile


_NO_FLAGS = frozenset({"name", "title", "hosts", "owned_by", "server", "by_model", "overrides"})


def read_flags(values: Mapping[str, object]) -> dict[str, object]:
    """Convert flags from the operator's settings to their types. Raises ValueError that names the wrong flag or
    value."""
    kinds = get_type_hints(UpstreamProfile)
    known = [field.name for field in fields(UpstreamProfile) if field.name not in _NO_FLAGS]
    read: dict[str, object] = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{name!r} is not a flag of a profile; known flags are {', '.join(sorted(known))}")
        if value is False and "off" in get_args(kinds[name]):
            # YAML reads the unquoted word `off` as false.
            value = "off"
        try:
            read[name] = flag = msgspec.convert(value, kinds[name])
        except msgspec.ValidationError as error:
            raise ValueError(f"{name}: {value!r} cannot be used: {error}") from None
        if name == "parameters" and (unknown := sorted(flag - EVERY_PARAMETER)):
            raise ValueError(
                f"parameters: unknown: {', '.join(unknown)}; list other fields to forward in 'field_allow'"
            )
    return read


def with_flags(profile: UpstreamProfile, flags: Mapping[str, object]) -> UpstreamProfile:
    """Return a copy of the profile with the operator's flags. These flags override the profile's flags, and also the
    flags in `by_model`."""
    if not flags:
        return profile
    overrides: dict[str, Any] = {**dict(profile.overrides), **flags}
    return replace(profile, **overrides, overrides=tuple(overrides.items()))


SupportKind = Literal["sent", "handled", "ignored", "rejected"]


@dataclass(frozen=True, slots=True)
class Support:
    """The treatment of one element of a request.

    - `sent`: the chat request has the element, in the form that chat servers know.
    - `handled` means that Antiphon does the work itself, or that another feature of the chat server has the same
      effect.
    - `ignored` means that Antiphon serves the request without the element, and lists it in `antiphon-ignored`.
    - `rejected`: the request gets a 400 that names the element.

    `note` gives details, and is empty if the kind needs no explanation.
    """

    kind: SupportKind
    note: str = ""


Rule = Support | Callable[[UpstreamProfile], Support]

SENT: Final = Support("sent")
IGNORED: Final = Support("ignored")


def sent(note: str) -> Support:
    """The chat server gets the element. `note` describes the element's form in the chat request."""
    return Support("sent", note)


def handled(note: str) -> Support:
    """Antiphon does the work itself. `note` describes how."""
    return Support("handled", note)


def ignored(note: str) -> Support:
    """The element has no effect. `note` names cases in which the element has an effect."""
    return Support("ignored", note)


def rejected(note: str) -> Support:
    """The request gets a 400. `note` gives the reason."""
    return Support("rejected", note)


def logprobs(profile: UpstreamProfile) -> Support:
    """Return the support for log probabilities. A request can ask for log probabilities with `include` or with
    `top_logprobs`."""
    return SENT if profile.logprobs else rejected("this server returns no log probabilities")
