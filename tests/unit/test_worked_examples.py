"""The worked examples work: each changes a copy of the package as docs/contributing/worked-examples.md says.

Each section is followed alone. What it promises is asked of a gateway that runs from the copy, by HTTP.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.worked_examples import ask, changed_copy, outcome_of_tests

MOST = {
    "A request field": 6,
    "A list operation of a store": 2,
    "A hosted tool": 2,
    "An upstream profile": 2,
    "A door": 1,
}


@pytest.mark.parametrize(("section", "most"), MOST.items())
def test_few_files_are_touched(section: str, most: int, tmp_path: Path) -> None:
    assert 0 < len(changed_copy(section, tmp_path).touched) <= most


def test_the_field_instructs_the_model_and_is_repeated_and_checked(tmp_path: Path) -> None:
    found = ask("A request field", tmp_path)
    assert found["chat"][0]["messages"][0] == {"role": "system", "content": "Answer in Welsh."}
    assert found["answers"][0]["answer_language"] == "Welsh"
    assert found["chat"][1]["messages"][0]["role"] == "user" and found["answers"][1]["answer_language"] is None
    refused = found["answers"][2]["error"]
    assert (refused["param"], refused["code"]) == ("answer_language", "invalid_type")


@pytest.mark.full
def test_the_tests_pass_after_the_edits_of_a_field(tmp_path: Path) -> None:
    files = ("test_field_support.py", "test_initial_response.py", "test_request_fields.py", "test_chat_stream.py")
    tests = [f"tests/unit/translation/{name}" for name in files] + ["tests/golden/test_golden.py"]
    outcome = outcome_of_tests("A request field", tmp_path, *tests, "tests/golden/test_reverse.py")
    assert " passed" in outcome and "failed" not in outcome and "error" not in outcome, outcome


@pytest.mark.full
def test_the_list_is_filtered_on_sqlite(tmp_path: Path) -> None:
    found = ask("A list operation of a store", tmp_path)
    assert found["names"] == ["Greeting"] and found["all"] == ["Farewell", "Greeting"] and found["none"] == []


@pytest.mark.full
def test_the_tool_runs_in_the_response(tmp_path: Path) -> None:
    found = ask("A hosted tool", tmp_path)
    call, message = found["answers"][0]["output"]
    assert (call["type"], call["server_label"], call["name"]) == ("mcp_call", "clock", "now")
    assert len(call["output"]) == 5 and message["content"][0]["text"] == "It is late."
    assert found["chat"][0]["tools"][0]["function"]["description"] == "Tell the time in UTC."
    assert found["chat"][1]["messages"][-1]["content"] == call["output"]


@pytest.mark.full
def test_the_profile_is_used_and_recognised(tmp_path: Path) -> None:
    found = ask("An upstream profile", tmp_path)
    assert "stream_options" not in found["chat"][0] and found["chat"][0]["max_completion_tokens"] == 50
    assert (found["host"], found["listed"]) == ("acme", "acme")


@pytest.mark.full
def test_the_door_answers_lines_and_stores_what_a_client_left(tmp_path: Path) -> None:
    found = ask("A door", tmp_path)
    assert found["whole"]["output"][0]["content"][0]["text"] == "Hi" and found["stream"] == "event: response.completed"
    assert found["refused"]["error"]["param"] == "model" and found["left"] == "failed"


def test_a_step_that_no_longer_fits_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"api/prompts\.py"):
        changed_copy("A list", tmp_path, text="## A list\n\nIn `api/prompts.py`:\n\n```diff\n-nowhere\n+there\n```\n")
