"""Sends requests to a router without a server, and checks the answers.

Lives here: sending requests, for test setups that have a router. Not here: the endpoints of the router.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.router import Router

_OWNER = "b:alice"


class AskedRouter:
    """The base of test setups with a router. `prefix` is put before each path."""

    prefix = ""
    router: Router

    async def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        owner: str = _OWNER,
        query: Sequence[tuple[str, str]] = (),
        prefix: str | None = None,
    ) -> ApiResponse:
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        path = (self.prefix if prefix is None else prefix) + path
        return await self.router.handle(ApiRequest(method, path, tuple(query), (), data, owner))

    async def ask(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """Send a request that must succeed. Returns the decoded answer."""
        answer = await self.send(method, path, body, **options)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def refused(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """Send a request that must fail. Returns the status and the error object."""
        answer = await self.send(method, path, body, **options)
        assert answer.status >= 400, answer.body
        error = json.loads(answer.body)["error"]
        assert set(error) - {"request_id"} == {"message", "type", "param", "code"}
        return answer.status, error
