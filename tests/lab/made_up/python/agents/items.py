"""Words of a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

NOT_A_TYPE = {"kind": "not_this", "name": "nor_this"}


@dataclass
class Item:
    type: Literal["omen_typed"] = "omen_typed"
    name: str = "nor this"


def tool(item: dict[str, Any]) -> dict[str, Any]:
    if item["type"] == "omen_call" or item.get("type") in ("omen_result", "omen_asked"):
        return {}
    return {"type": "function", "name": "type"}
