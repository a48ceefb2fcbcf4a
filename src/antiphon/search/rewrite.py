"""Rewrites a user's search text into a better search query by calling a model.

Lives here: the prompt for the model, and extracting the query from the model's response. Not here: the search
(`searcher.py`).

Invariant: `rewrite` always returns a query. If the model or its server fails, `rewrite` returns the original text.
"""

from __future__ import annotations

import asyncio
import re

import msgspec
import structlog

from antiphon.engine.exchange.model_routes import ModelRoutes
from antiphon.engine.ports.actions import UpstreamRequest
from antiphon.engine.ports.state import Upstream, UpstreamCallFailed
from antiphon.types.json import encode
from antiphon.types.transport import Headers

_log = structlog.get_logger(__name__)

_ASKED = (
    "Rewrite the user's message as one query for a search over documents: the words and names that a passage with the "
    "answer would hold, in the language of the message. Leave out polite words and instructions. Answer with the query "
    "alone."
)
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_MAX_QUERY = 1_024
_OF_THE_ACCOUNT = frozenset({"authorization", "openai-organization", "openai-project"})


class _Message(msgspec.Struct):
    content: str | None = None


class _CompletionChoice(msgspec.Struct):
    message: _Message


class _Completion(msgspec.Struct):
    choices: list[_CompletionChoice]


class ModelRewriter:
    """Calls `model` through the route that Antiphon's settings give this model, with a timeout of `seconds`."""

    def __init__(self, upstream: Upstream, routes: ModelRoutes, model: str, *, seconds: float) -> None:
        self._upstream = upstream
        self._model = model
        self._route = routes.choose(model)
        self._seconds = seconds

    async def rewrite(self, query: str, headers: Headers) -> str:
        """Return the rewritten query, or `query` itself on a failure. `headers`: the client's request headers. If the
        route passes credentials through, the model server receives the client's credentials."""
        passed = _OF_THE_ACCOUNT if self._route.passthrough else frozenset()
        model = self._route.model or self._model
        body = {
            "model": model,
            "messages": [{"role": "system", "content": _ASKED}, {"role": "user", "content": query}],
            "stream": False,
        }
        request = UpstreamRequest(
            method="POST",
            path="/chat/completions",
            headers=(
                ("content-type", "application/json"),
                ("accept", "application/json"),
                *((name, value) for name, value in headers if name in passed),
            ),
            body=encode(body),
            model=model,
            stream=False,
            upstream=self._route.upstream,
            tries=len(self._route.upstreams),
        )
        try:
            async with asyncio.timeout(self._seconds), self._upstream.call(request) as answer:
                data = b"".join([part async for part in answer.body()])
                if answer.status == 200:
                    return _query(msgspec.json.decode(data, type=_Completion)) or query
                problem = f"status {answer.status}"
        except TimeoutError:
            problem = "timed out"
        except UpstreamCallFailed as error:
            problem = error.error.fault.value
        except (msgspec.DecodeError, UnicodeDecodeError):
            problem = "unreadable answer"
        _log.warning("query_not_rewritten", problem=problem)
        return query


def _query(answer: _Completion) -> str:
    text = answer.choices[0].message.content if answer.choices else None
    lines = _THOUGHTS.sub("", text or "").strip().splitlines()
    return lines[0].strip().strip("\"'`").strip()[:_MAX_QUERY] if lines else ""
