"""What a queued request needs of the process that runs it."""

from __future__ import annotations

import msgspec
import pytest

from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes, ModelRule
from antiphon.engine.exchange.queued_request import able_to, job_needs
from antiphon.translation.profiles import UpstreamProfile
from antiphon.translation.request.body import read_request

PROFILE = UpstreamProfile("test")
TYPES = frozenset(("code_interpreter", "web_search"))
ROUTES = ModelRoutes(ModelRoute(PROFILE), (ModelRule("big-*", ModelRoute(PROFILE, upstream="far")),))


@pytest.mark.parametrize(
    ("tools", "route", "needs"),
    [
        ([], ROUTES.default, ("version:1", "upstream:default")),
        ([{"type": "web_search"}], ROUTES.rules[0].route, ("version:1", "upstream:far", "tool:web_search")),
        (
            [{"type": "web_search"}, {"type": "code_interpreter", "container": {"type": "auto"}}],
            ROUTES.default,
            ("version:1", "upstream:default", "tool:code_interpreter", "tool:web_search"),
        ),
        ([{"type": "function", "name": "f", "parameters": {}}], ROUTES.default, ("version:1", "upstream:default")),
    ],
)
def test_a_process_can_run_whatever_it_queues(
    tools: list[dict[str, object]], route: ModelRoute, needs: tuple[str, ...]
) -> None:
    body = msgspec.json.encode({"model": "m", "input": "x", "tools": tools})
    request = read_request(body, max_items=10, max_tools=10, hosted=TYPES)
    assert job_needs(request, route, TYPES) == needs
    assert able_to(ROUTES, TYPES) >= set(needs)


def test_one_without_a_sandbox_or_an_upstream_cannot() -> None:
    able = able_to(ModelRoutes(ModelRoute(PROFILE)), frozenset())
    assert able == {"version:1", "upstream:default"}


def test_a_build_that_writes_another_payload_reads_the_one_before() -> None:
    request = read_request(b'{"model": "m", "input": "x"}', max_items=10, max_tools=10, hosted=TYPES)
    assert job_needs(request, ROUTES.default, TYPES, payloads=(1, 2))[0] == "version:2"
    assert able_to(ROUTES, TYPES, payloads=(1, 2)) >= {"version:1", "version:2"}
