"""What a failure's line advises: settings that there are, to those who can do something."""

from __future__ import annotations

import re

import pytest

from antiphon.config.section import Section
from antiphon.config.settings import Settings
from antiphon.engine.exchange.failure import Failure, Fault
from antiphon.observability import outcome
from antiphon.observability.outcome import advice_for
from antiphon.types.transport import NO_MODEL_DOOR

TABLES = [table for name, table in vars(outcome).items() if name.startswith("_BY_")]
EVERY = [text for table in TABLES for text in table.values()]
SECTIONS = {
    name: kind
    for name, field in Settings.model_fields.items()
    if isinstance(kind := field.annotation, type) and issubclass(kind, Section)
}


@pytest.mark.parametrize(
    ("failure", "begins"),
    [
        (Failure("upstream", "x", code="upstream_unreachable", operation="restart"), "check that the upstream runs"),
        (
            Failure("upstream", f"unreachable: {NO_MODEL_DOOR} (x)", code="upstream_unreachable"),
            "check that Envoy runs",
        ),
        (
            Failure("upstream", "x", code="odd", upstream_status=401),
            "the upstream refuses the key: with auth passthrough",
        ),
        (Failure("upstream", "x", code="odd", upstream_status=403), "the upstream's account lacks the permission"),
        (Failure("upstream", "x", code="odd", upstream_status=404), "the upstream has no such path"),
        (Failure("ours", "x", code="server_error", operation="restart"), "more processes died"),
        (Failure("ours", "x", code="insufficient_storage", operation="save"), "free space"),
        (Failure("ours", "x"), ""),
    ],
)
def test_what_is_known_best_says_what_to_do(failure: Failure, begins: str) -> None:
    said = advice_for(failure)
    assert said.startswith(begins) and bool(said) is bool(begins)


@pytest.mark.parametrize("fault", ["client", "cancelled", "unknown"])
def test_nobody_is_advised_about_what_is_not_his(fault: Fault) -> None:
    assert advice_for(Failure(fault, "x", code="rate_limit_exceeded", upstream_status=401)) == ""


def test_settings_that_are_named_are_there() -> None:
    named = {match for text in EVERY for match in re.findall(r"\b([a-z]+)\.([a-z_]+)\b", text)}
    assert {("timeouts", "save"), ("background", "attempts")} <= named
    for section, name in named:
        kind = SECTIONS[section]
        assert isinstance(kind, type) and issubclass(kind, Section) and name in kind.model_fields, (section, name)
    assert all(len(text) < 120 for text in EVERY)


@pytest.mark.parametrize(
    ("code", "advised"),
    [
        ("upstream_unreachable", "its url is right"),
        ("upstream_timeout", "timeouts.head"),
        ("upstream_cut", "closed the connection early"),
        ("upstream_too_large", "limits.upstream_body_bytes"),
        ("upstream_invalid", "does not come from a Chat Completions server"),
        ("upstream_credentials_refused", "check the upstream's api_key"),
        ("endpoint_picker_unavailable", "envoy.endpoint_picker.address"),
        ("endpoint_picker_timeout", "the picker is slow"),
        ("no_endpoint_picked", "a ready server"),
        ("rate_limit_exceeded", "rate limit is reached"),
        ("insufficient_quota", "no quota left"),
        ("server_is_overloaded", "add capacity"),
        ("models_not_listed", "upstream.models"),
        ("upstream_misconfigured", "no such path"),
        ("insufficient_storage", "free space"),
        ("storage_locked", "holds a lock"),
        ("storage_timed_out", "state.deadline"),
        ("storage_unavailable", "start PostgreSQL"),
        ("storage_read_only", "write access"),
        ("storage_sealed", "sealing.keys"),
        ("content_elsewhere", "blobs.url"),
        ("storage_failed", "restore a backup"),
        ("tool_timeout", "tools.seconds"),
        ("shutting_down", "timeouts.drain"),
    ],
)
@pytest.mark.parametrize("fault", ["ours", "upstream"])
def test_each_code_has_what_helps_with_it(fault: Fault, code: str, advised: str) -> None:
    assert advised in advice_for(Failure(fault, "x", 500, code, upstream_status=403))
