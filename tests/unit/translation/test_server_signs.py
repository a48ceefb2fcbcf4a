"""Which server sent a list of models: by its owners, else by the name of the server, never by a guess."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.translation.profiles import PROFILES, named_by_list


def _list(*owners: Any) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": f"m{number}", "owned_by": owner} for number, owner in enumerate(owners)]}


@pytest.mark.parametrize(
    ("listed", "server", "profile"),
    [
        (_list("vllm"), "", "vllm"),
        (_list("llamacpp"), "nginx", "llamacpp"),
        (_list("library"), "", "ollama"),
        (_list("organization_owner"), "", "lmstudio"),
        # The demo upstream.
        (_list("antiphon-demo"), "", "generic"),
        # The first owner that says anything; a list says more than a header does.
        (_list("somebody", None, 5, "sglang", "vllm"), "llama.cpp", "sglang"),
        ({"data": [5, None, {"owned_by": "vllm"}]}, "", "vllm"),
        # Nothing in the list: the header.
        (_list("somebody"), "LLama.CPP/b1", "llamacpp"),
        (_list(), "vLLM 0.9", "vllm"),
        ({"data": None}, "sglang", "sglang"),
        ({"data": {"owned_by": "vllm"}}, "", ""),
        ([{"owned_by": "vllm"}], "", ""),
        (None, "", ""),
        (_list("openai"), "cloudflare", ""),
    ],
)
def test_a_server_is_what_it_says(listed: Any, server: str, profile: str) -> None:
    assert named_by_list(listed, server) == profile
    assert not profile or profile in PROFILES
