"""An API without a server: what a router answers to a request, and what it must answer.

Lives here: asking, for setups that have a router. Not here: what the router serves.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from antiphon.api.http import ApiRequest, ApiResponse
from antiphon.api.router import Router

_OWNER = "b:alice"


class AskedRouter:
    """What such a setup has. `prefix` stands before its paths."""

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
        """What a request that must succeed answers."""
        answer = await self.send(method, path, body, **options)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    async def refused(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, dict[str, Any]]:
        """The status and error of one that must not."""
        answer = await self.send(method, path, body, **options)
        assert answer.status >= 400, answer.body
        error = json.loads(answer.body)["error"]
        assert set(error) - {"request_id"} == {"message", "type", "param", "code"}
        return answer.status, error
