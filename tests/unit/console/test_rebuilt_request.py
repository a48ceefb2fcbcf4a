"""What the console restores of a request from the stored response."""

from __future__ import annotations

from typing import Any

import pytest

from antiphon.console.rebuilt_request import NOT_REPEATED, rebuilt, what_is_missing
from antiphon.translation.request.fields import ECHOED

ITEMS = [{"type": "message", "role": "user", "content": "hi"}]


def stored(**fields: Any) -> dict[str, Any]:
    """A stored response. The fields without an argument have the values of a request that does not set them."""
    defaults: dict[str, Any] = {
        "id": "resp_1",
        "created_at": 1,
        "model": "m",
        "status": "cancelled",
        "tools": [],
        "tool_choice": "auto",
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "metadata": {},
        "reasoning": {"effort": None, "summary": None},
    }
    return {name: row.echo for name, row in ECHOED.items()} | defaults | fields


def test_a_field_that_the_request_does_not_set_stays_absent() -> None:
    assert rebuilt(stored(), ITEMS) == {"model": "m", "input": ITEMS}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            ("temperature", 0),
            ("top_p", 0.0),
            ("parallel_tool_calls", False),
            ("background", True),
            ("top_logprobs", 3),
        ),
        *(("previous_response_id", "resp_0"), ("service_tier", "flex"), ("tool_choice", "none"), ("user", "u")),
    ],
)
def test_a_field_that_the_request_sets_is_restored(name: str, value: object) -> None:
    assert rebuilt(stored(**{name: value}), ITEMS)[name] == value


def test_what_antiphon_added_is_left_out() -> None:
    metadata = {"a": "b", "antiphon_upstream": "other"}
    assert rebuilt(stored(metadata=metadata), ITEMS)["metadata"] == {"a": "b"}
    prompt, messages = {"id": "pmpt_1"}, [{"type": "message", "role": "user", "content": "of the prompt"}]
    response = stored(prompt=prompt, instructions=messages, conversation={"id": "conv_1"})
    assert rebuilt(response, []) == {"model": "m", "conversation": "conv_1", "prompt": prompt}
    assert "instructions in addition" in what_is_missing(response, cut=False)


def test_what_a_response_does_not_have_is_named() -> None:
    assert set(NOT_REPEATED) == {"context_management", "include", "prompt_cache_options"}
    plain = what_is_missing(stored(), cut=False)
    assert all(name in plain for name in NOT_REPEATED) and "input items" not in plain and "MCP" not in plain
    more = what_is_missing(stored(tools=[{"type": "mcp", "server_label": "s"}]), cut=True)
    assert "credentials of MCP servers" in more and "the last input items" in more
