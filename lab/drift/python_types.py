"""Prints the schema positions of OpenAI's Python client types as JSON: `python -m lab.drift.python_types FOLDER`.

The program runs in an environment of that client, because it imports the client's types; FOLDER has the package. Not
here: the meaning of the positions (`found.py`).

The reading is reliable: the client checks requests and answers with these types, and pydantic converts them to schemas.
The types of a beta are read in the same way and listed separately.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.openai_client import WITHOUT, operations
from tests.support.shapes import shape_of

# Area, module below `openai.types`, name of the type.
_TYPES = (
    ("request", "responses.response_create_params", "ResponseCreateParamsNonStreaming"),
    ("response", "responses.response", "Response"),
    ("events", "responses.response_stream_event", "ResponseStreamEvent"),
    ("events", "responses.responses_server_event", "ResponsesServerEvent"),
    ("frames", "responses.responses_client_event", "ResponsesClientEvent"),
)
_BETA = (
    ("request", "beta.response_create_params", "ResponseCreateParamsNonStreaming"),
    ("events", "beta.beta_responses_server_event", "BetaResponsesServerEvent"),
    ("frames", "beta.beta_responses_client_event", "BetaResponsesClientEvent"),
)
_NEEDED = 3
"""The number of types that every version has. The types after them were added later."""


def places(types: tuple[tuple[str, str, str], ...], *, needed: int = 0) -> dict[str, list[str]]:
    """The schema positions of each area. Raises ImportError if one of the first `needed` types is missing."""
    pydantic = importlib.import_module("pydantic")
    found: dict[str, set[str]] = {}
    for number, (area, module, name) in enumerate(types):
        try:
            kind: Any = getattr(importlib.import_module(f"openai.types.{module}"), name)
        except (ImportError, AttributeError):
            if number < needed:
                raise
            continue
        schema = pydantic.TypeAdapter(kind).json_schema()
        without = WITHOUT.get(area, frozenset()) if area != "frames" else frozenset({"input", "tools", "text"})
        found.setdefault(area, set()).update(shape_of(schema, schema, without=without).places)
    return {area: sorted(one) for area, one in found.items()}


def main() -> None:
    """Print the positions."""
    folder = Path(sys.argv[1])
    sys.path.insert(0, str(folder))
    json.dump(
        {"types": places(_TYPES, needed=_NEEDED), "beta": places(_BETA), "operations": operations(folder)}, sys.stdout
    )


if __name__ == "__main__":
    main()
