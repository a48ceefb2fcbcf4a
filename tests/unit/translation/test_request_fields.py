"""One row makes a field: a copy of the sources gets one row more, and everything about the field follows from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import antiphon

ROOT = Path(__file__).parents[3]
_BEFORE = '    Field("user", str'
_ROW = '    Field("dialect", str, longest=8, forward=_if_passed, echo=None),\n'
_PROGRAM = """
import json
from antiphon.engine.exchange.model_routes import ModelRoute, ModelRoutes
from antiphon.translation.request.field_support import support_of
from antiphon.translation.profiles import PROFILES, with_flags
from generate_docs import compatibility
from tests.schemas.api_document import document
from tests.support.exchanges import JSON, run

ANSWER = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]}
TAKES = with_flags(PROFILES["generic"], {"passed_fields": ["dialect"]})
found = {}
for name, profile in {"takes": TAKES, "generic": PROFILES["generic"]}.items():
    for value in ("norse", None, "much too long", 5):
        request = {"model": "m", "input": "Hi"} | ({"dialect": value} if value is not None else {})
        routes = ModelRoutes(ModelRoute(profile))
        outcome = run(request, [json.dumps(ANSWER).encode()], headers=JSON, routes=routes)
        found[f"{name} {value}"] = {
            "status": outcome.head.status,
            "ignored": dict(outcome.head.headers).get("antiphon-ignored"),
            "answer": outcome.json,
            "chat": outcome.chat if outcome.calls else None,
        }
    found[name] = support_of(profile, "dialect").kind
schemas = document(())["components"]["schemas"]
found["asked"] = schemas["CreateResponse"]["properties"]["dialect"]
found["shown"] = schemas["Response"]["properties"]["dialect"]
found["page"] = [line for line in compatibility().splitlines() if "`dialect`" in line]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a gateway does whose table of fields has the row."""
    sources = tmp_path_factory.mktemp("sources")
    copy = sources / "antiphon"
    shutil.copytree(Path(antiphon.__file__).parent, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    table = copy / "translation" / "request" / "fields.py"
    before, rest = table.read_text().split(_BEFORE)
    table.write_text(before + _ROW + _BEFORE + rest)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(sources), str(ROOT), str(ROOT / "scripts" / "lib")))}
    ran = subprocess.run([sys.executable, "-c", _PROGRAM], env=environ, capture_output=True, text=True, check=True)
    answers: dict[str, Any] = json.loads(ran.stdout)
    return answers


def test_it_goes_to_a_server_that_takes_it_and_is_named_for_others(found: dict[str, Any]) -> None:
    assert found["takes norse"]["chat"]["dialect"] == "norse" and found["takes norse"]["ignored"] is None
    assert "dialect" not in found["generic norse"]["chat"] and found["generic norse"]["ignored"] == "dialect"
    assert "dialect" not in found["takes None"]["chat"] and found["generic None"]["ignored"] is None


def test_every_response_repeats_it_in_its_place(found: dict[str, Any]) -> None:
    for name, shown in {"norse": "norse", "None": None}.items():
        for profile in ("takes", "generic"):
            answer = found[f"{profile} {name}"]["answer"]
            assert answer["dialect"] == shown
            keys = list(answer)
            assert keys[keys.index("dialect") + 1] == "error"


def test_its_type_and_its_length_are_checked(found: dict[str, Any]) -> None:
    for value, code in (("much too long", "string_above_max_length"), (5, "invalid_type")):
        refused = found[f"takes {value}"]
        assert refused["status"] == 400 and refused["chat"] is None
        error = refused["answer"]["error"]
        assert (error["param"], error["code"]) == ("dialect", code)


def test_the_table_the_document_and_the_page_know_it(found: dict[str, Any]) -> None:
    assert (found["takes"], found["generic"]) == ("sent", "ignored")
    assert found["asked"] == {"type": ["string", "null"], "maxLength": 8}
    assert found["shown"] == {"type": ["string", "null"]}
    (row,) = found["page"]
    assert row.startswith("| ") and row.endswith(" | ignored |  |")
