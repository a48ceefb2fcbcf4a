"""What a client says on a WebSocket."""

from __future__ import annotations

from typing import Literal, TypeAlias

from pydantic import BaseModel


class Create(BaseModel):
    type: Literal["response.create"]
    model: str


class Whisper(BaseModel):
    type: Literal["response.whisper"]


ResponsesClientEvent: TypeAlias = Create | Whisper
