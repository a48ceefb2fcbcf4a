"""Events."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel


class TextDelta(BaseModel):
    type: Literal["response.output_text.delta"]
    delta: str
    aura: str


class OmenSeen(BaseModel):
    type: Literal["response.omen.seen"]
    meaning: str


ResponseStreamEvent: TypeAlias = TextDelta | OmenSeen
