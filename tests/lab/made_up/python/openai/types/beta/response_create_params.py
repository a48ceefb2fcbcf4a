"""A request of the beta."""

from __future__ import annotations

from typing_extensions import TypedDict


class ResponseCreateParamsNonStreaming(TypedDict, total=False):
    model: str
    seance: str
