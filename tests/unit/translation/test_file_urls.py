"""Finding the files a request names by URL or by id."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.errors import InvalidRequest
from antiphon.translation.chat.content import file_ids, file_urls, forgive_history, stored_parts
from antiphon.types.file_kinds import FetchedFile
from antiphon.types.items import InputItem


def items(*values: dict[str, Any]) -> list[InputItem]:
    return msgspec.json.decode(json.dumps(values), type=list[InputItem])


def part(url: Any) -> dict[str, Any]:
    return {"type": "input_file", "file_url": url}


def test_urls_in_messages_and_tool_outputs_in_order() -> None:
    found = file_urls(
        items(
            {"role": "user", "content": [{"type": "input_text", "text": "x"}, part("https://a"), part("https://b")]},
            {"role": "user", "content": "file_url"},
            {"type": "function_call_output", "call_id": "1", "output": [part("https://a")]},
        )
    )
    assert found == ["https://a", "https://b", "https://a"]


@pytest.mark.parametrize(
    "content",
    [
        'a text with "file_url"',
        None,
        {"file_url": "https://a"},
        {"type": "text", "file_url": "https://a"},
        [{"type": "input_text", "file_url": "https://a", "text": "x"}],
        [part(None)],
        [part("")],
        [part(7)],
        ["file_url"],
    ],
)
def test_what_is_no_file_part_names_nothing(content: Any) -> None:
    assert file_urls(items({"role": "user", "content": content})) == []


def test_ids_of_files_and_pictures() -> None:
    content = [
        {"type": "input_file", "file_id": "file-a"},
        {"type": "input_image", "file_id": "file-b"},
        {"type": "input_file", "file_id": "file-c", "file_url": "https://a"},  # taken by its URL
        {"type": "input_image", "image_url": "https://b"},
    ]
    output = {"type": "computer_screenshot", "file_id": "file-d"}
    given_items: list[dict[str, Any]] = [
        {"role": "user", "content": content},
        {"type": "computer_call_output", "call_id": "1", "output": output},
    ]
    assert file_ids(items(*given_items)) == ["file-a", "file-b", "file-d"]
    assert file_ids(stored_parts(json.dumps(each).encode() for each in given_items)) == ["file-a", "file-b", "file-d"]
    assert file_urls(items(*given_items)) == ["https://a"]


def test_any_spelling_of_the_key_counts() -> None:
    raw = rb'[{"role":"user","content":[{"type":"input_file","file\u005furl":"https://a"}]}]'
    assert file_urls(msgspec.json.decode(raw, type=list[InputItem])) == ["https://a"]


def test_only_what_the_request_names_must_be_there() -> None:
    there, gone = FetchedFile("a", "text/plain", b"a"), InvalidRequest("gone")
    files = forgive_history({"https://old": gone, "https://new": gone, "https://both": there}, ["https://new"])
    assert files["https://new"] is gone and files["https://both"] is there
    note = files["https://old"]
    assert isinstance(note, FetchedFile) and b"no longer available" in note.data and note.media_type == "text/plain"


def test_stored_items_name_files_as_well() -> None:
    body = json.dumps({"id": "msg_1", "type": "message", "role": "user", "content": [part("https://a")]}).encode()
    assert file_urls(stored_parts([body, b'{"id":"x"}'])) == ["https://a"]


@given(
    st.recursive(
        st.none() | st.booleans() | st.text() | st.just("file_url"),
        lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "file_url", "x"]), inner),
    )
)
def test_any_content_is_read_without_failing(content: Any) -> None:
    file_urls(items({"role": "user", "content": content}))
