"""The capabilities that a process needs to run a background response that another process queued.

Lives here: the words for it, of a request and of a process. Not here: who compares them (the job store), running it.

Processes of one state may differ: in the middle of a rollout, or where only some machines have a sandbox. A job that
needs what a process lacks is left for another one, instead of failing there.

Invariants: a process is able to run whatever it would queue itself, and what the build before it queued.
"""

from __future__ import annotations

from antiphon.engine.exchange.declared_tools import hosted_tools
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.types.request import CreateResponse

PAYLOADS: tuple[int, ...] = (1,)
"""The forms of a job's payload (`engine/ports/jobs.py`) that this build reads; it writes the last. Another number where
an older build could not read it, with the one before beside it: in a rollout such jobs are waiting."""


def job_needs(
    request: CreateResponse, route: ModelRoute, tool_types: frozenset[str], *, payloads: tuple[int, ...] = PAYLOADS
) -> tuple[str, ...]:
    """What this request needs."""
    tools = {f"tool:{tool.type}" for tool in hosted_tools(request, tool_types)}
    return (f"version:{payloads[-1]}", f"upstream:{route.upstream}", *sorted(tools))


def able_to(routes: ModelRoutes, tool_types: frozenset[str], *, payloads: tuple[int, ...] = PAYLOADS) -> frozenset[str]:
    """What a process with these routes and tools is able to."""
    upstreams = {route.upstream for route in (routes.default, *(rule.route for rule in routes.rules))}
    return frozenset(
        (
            *(f"version:{number}" for number in payloads),
            *(f"upstream:{name}" for name in upstreams),
            *(f"tool:{kind}" for kind in tool_types),
        )
    )
