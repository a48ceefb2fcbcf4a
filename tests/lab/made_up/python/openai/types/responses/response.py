"""An answer."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class FunctionCall(BaseModel):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class OmenCall(BaseModel):
    type: Literal["omen_call"]
    meaning: str


class Response(BaseModel):
    id: str
    omen: str
    output: list[FunctionCall | OmenCall]
