"""The profile type: every question a translator may ask about an upstream.

Lives here: the flags, their defaults, and how a model narrows them. Not here: any vendor (`vendors.py`).

Invariant: the defaults survive every server that was ever recorded; a flag is set only where that is not the best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

__all__ = ["UpstreamProfile"]


@dataclass(frozen=True, slots=True)
class UpstreamProfile:
    """What an upstream accepts and how its answers are to be judged.

    Request: `token_limit_field` is the field for `max_output_tokens`; `developer_role` the role name that developer
    messages get; `reasoning_effort`, `verbosity`, `parallel_tool_calls`, `penalties` and `strict_tools` say whether
    the field is sent at all; `effort_values` are the efforts the server knows (None: sent as they are, else the
    nearest); `structured_output` is the strongest form of `text.format` it takes (weaker ones are emulated with an
    instruction); `named_tool_choice` says how one tool is demanded (`required`: only that tool is shown, and a call
    is required); `passed_fields` are request fields sent on under their own name; `images`, `files` and `audio_input`
    say which content it takes (`text`: files that are text become text, others are refused); `replay_reasoning` is the
    key under which earlier reasoning goes back, `replay_details` whether `reasoning_details` go back too.

    Answer: `end_without_finish` is what a stream means that ended without a `finish_reason` after useful output;
    `think` says where reasoning hides in the content: nowhere, in an answer that begins with `<think>`, or in
    everything before `</think>` because the template opened it; `opened_models` are patterns of model names for which
    it is `opened`; `stream_usage` asks for usage in streams.
    """

    name: str
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    developer_role: Literal["system", "developer"] = "system"
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
    images: bool = True
    files: Literal["part", "text"] = "part"
    audio_input: bool = False
    replay_reasoning: Literal["reasoning_content", "reasoning", "off"] = "reasoning_content"
    replay_details: bool = False
    passed_fields: frozenset[str] = frozenset()
    think: Literal["off", "tagged", "opened"] = "tagged"
    opened_models: tuple[str, ...] = ()

    def for_model(self, model: str) -> UpstreamProfile:
        """This profile as it holds for one model; the same object when nothing differs."""
        return _narrowed(self, model) if self.opened_models else self


@lru_cache(maxsize=1024)
def _narrowed(profile: UpstreamProfile, model: str) -> UpstreamProfile:
    name = model.lower()
    if profile.think != "opened" and any(fnmatchcase(name, pattern) for pattern in profile.opened_models):
        return replace(profile, think="opened")
    return profile
