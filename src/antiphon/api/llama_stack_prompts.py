"""Prompts in the shape that Llama Stack's clients know: `prompt_id`, `prompt`, versions as numbers, oldest first.

Lives here: telling such a client apart, and the shape. Not here: the resource itself (`prompts.py`), whose requests
take these clients' names anyway.

Source: `Prompt` of llama-stack-client 0.7; its User-Agent names the client's class.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from antiphon.api.http import ApiRequest, query_choice
from antiphon.engine.ports.actions import StoredPrompt
from antiphon.engine.ports.state import PageQuery
from antiphon.translation.prompt_template import variables_of

_CLIENTS = re.compile(r"(Async)?(LlamaStack|Ogx)Client/")
_TEMPLATE = msgspec.json.Decoder(dict[str, Raw])


def is_llama_stack(request: ApiRequest) -> bool:
    """Whether one of these clients asks."""
    return _CLIENTS.match(request.header("user-agent") or "") is not None


def show_prompt(prompt: StoredPrompt) -> dict[str, Any]:
    """One version of a prompt. A template of items, which these clients do not know, has an empty text."""
    template = _TEMPLATE.decode(prompt.body)
    return {
        "prompt_id": prompt.id,
        "prompt": template.get("instructions", ""),
        "version": prompt.version,
        "variables": variables_of(prompt.body),
        "is_default": prompt.version == prompt.default_version,
    }


def read_whole_page(request: ApiRequest) -> PageQuery:
    """As many as a page may have, oldest first unless asked otherwise: these clients read no further page."""
    return PageQuery(limit=100, descending=query_choice(request, "order", ("asc", "desc"), "asc") == "desc")
