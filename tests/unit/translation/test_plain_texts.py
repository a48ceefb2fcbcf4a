"""A list of one text part, as Antiphon stores it and SDKs send it, is read without decoding its JSON. The result is the
same as for the same list in another spelling, which is decoded."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from antiphon.translation.chat.content import ContentRules, message_content
from antiphon.translation.profiles import UpstreamProfile

_RULES = ContentRules(UpstreamProfile("default"), {})
_AWKWARD = st.text(st.sampled_from('"\\{}[],:ntextype \n\té漢'), max_size=40) | st.text(max_size=40)
_ROLES = ("user", "assistant", "system")


def _parts(kind: str, text: str) -> list[dict[str, object]]:
    more: dict[str, object] = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
    return [{"type": kind, "text": text, **more}]


def _content(parts: object, separators: tuple[str, str], *, ascii: bool) -> Raw:
    return Raw(json.dumps(parts, separators=separators, ensure_ascii=ascii).encode("utf-8", "surrogatepass"))


@given(_AWKWARD, st.sampled_from(("input_text", "output_text")), st.sampled_from(_ROLES), st.booleans())
def test_both_spellings_of_a_text_part_give_the_same_text(text: str, kind: str, role: str, ascii: bool) -> None:
    parts = _parts(kind, text)
    found = message_content("input[0]", role, _content(parts, (",", ":"), ascii=ascii), _RULES)
    decoded = message_content("input[0]", role, _content(parts, (", ", ": "), ascii=ascii), _RULES)
    assert found is not None and decoded is not None
    assert json.loads(bytes(found)) == json.loads(bytes(decoded)) == text


@pytest.mark.parametrize("text", ["", '"', "\\", '\\"', '"\\', '\\\\"\\'])
def test_quotation_marks_and_backslashes_of_a_text_stay(text: str) -> None:
    content = _content(_parts("input_text", text), (",", ":"), ascii=True)
    assert message_content("input[0]", "user", content, _RULES) == Raw(json.dumps(text).encode())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('[{"type":"input_text","text":"a"},{"type":"input_text","text":"b"}]', "ab"),
        ('[{"type":"output_text","text":"a","text":"b"}]', "b"),
        ('[{"type":"input_text","text":"a","prompt_cache_breakpoint":{"mode":"x"}}]', "a"),
        ('[{"type":"output_text","text":"a","annotations":[{"type":"url_citation","url":"x"}]}]', "a"),
        ('[{"type":"output_text","text":"\\\\","annotations":[],"logprobs":[]}]', "\\"),
        (
            '[{"type":"output_text","text":"\\",\\"annotations\\":[],\\"logprobs\\":[]}]"}]',
            '","annotations":[],"logprobs":[]}]',
        ),
    ],
)
def test_other_lists_are_decoded(content: str, text: str) -> None:
    assert message_content("input[0]", "assistant", Raw(content.encode()), _RULES) == Raw(json.dumps(text).encode())
