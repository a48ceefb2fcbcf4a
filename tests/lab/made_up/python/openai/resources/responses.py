"""Operations, in the form in which the client writes them."""

from __future__ import annotations

from typing import Any


class Responses:
    """All of them."""

    def create(self, body: Any) -> Any:
        return self._post("/responses", body=body)

    def omen(self, omen_id: str) -> Any:
        return self._post(f"/omens/{omen_id}")

    def _post(self, path: str, **options: Any) -> Any:
        return path, options
