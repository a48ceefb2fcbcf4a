"""What `tool_search` finds: what words weigh, where each limit is. (What a search is in a response: `unit/engine`.)"""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool
from antiphon.tools.box import ToolFailed
from antiphon.tools.tool_search import ToolSearch, find
from antiphon.translation.tool_map import CallKind, CallTarget


def _function(name: str, description: str = "", parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": "function", "name": name, "description": description, "parameters": parameters or {}}


def _space(name: str, description: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": description, "tools": list(tools)}


def _raw(tools: tuple[dict[str, Any], ...] | list[dict[str, Any]]) -> list[bytes]:
    return [json.dumps(one).encode() for one in tools]


def _found(query: str, *tools: dict[str, Any]) -> list[str]:
    names = []
    for raw in find(query, _raw(tools)):
        tool = json.loads(bytes(raw))
        names += [f"{tool['name']}.{one['name']}" for one in tool["tools"]] if "tools" in tool else [tool["name"]]
    return names


def _properties(**described: Any) -> dict[str, Any]:
    return {"type": "object", "properties": described}


# Words


@pytest.mark.parametrize(
    ("query", "word", "fits"),
    [
        ("sky", "skies", True),
        ("tie", "ties", True),
        ("cat", "cats", True),
        ("bu", "bus", False),
        ("mas", "mass", False),
        ("curr", "currency", True),
        ("cur", "currency", False),
        ("rateful", "rate", True),
        ("ratful", "rat", False),
        ("xrate", "rate", False),
        ("getUser", "get_user", True),
        ("user", "getUserById", True),
        ("beta", "v2Beta", True),
    ],
)
def test_which_words_are_the_same(query: str, word: str, fits: bool) -> None:
    assert (_found(query, _function("t", word)) == ["t"]) is fits


def test_what_a_word_weighs_by_its_place() -> None:
    """Each place counts more than the next, and all of them count."""
    places = [
        _function("zebra_one"),
        _space("zebra_two", "", _function("a")),
        _function("b", "zebra"),
        _space("c", "zebra", _function("d")),
        _function("e", "", _properties(zebra={"type": "string"})),
        _function("f", "", _properties(x={"description": "zebra"})),
    ]
    order = ["zebra_one", "zebra_two.a", "b", "c.d", "e", "f"]
    for first, second in zip(range(len(places)), range(1, len(places)), strict=False):
        # Two at a time: what has less than a third of the best one's score is not found.
        both = _found("zebra", places[second], places[first])
        assert both[: 1 + (order[second] in both)] == ([order[first], order[second]])[: len(both)] or first == 3, both
    assert _found("zebra", *places[:3]) == order[:3]
    assert _found("zebra", places[0], places[3]) == ["zebra_one"]
    # A namespace's description and a parameter's name count the same: they come in their own order.
    assert _found("zebra", *places[3:5]) == order[3:5] and _found("zebra", *places[4:2:-1]) == ["e", "c.d"]
    assert _found("zebra", places[5]) == ["f"]


def test_a_word_counts_where_it_weighs_most_and_once() -> None:
    twice = _function("one", "zebra zebra", _properties(zebra={"description": "zebra"}))
    assert _found("zebra", _function("two", "zebra"), twice) == ["two", "one"]
    # A word at its beginning counts half as much as the whole one, wherever both stand.
    assert _found("zebra", _function("a", "zebras zebrafish"), _function("b", "zebrafish")) == ["a", "b"]


def test_a_word_that_few_have_counts_more() -> None:
    common = [_function(f"t{number}", "mail") for number in range(5)]
    assert _found("mail zebra", *common, _function("rare", "zebra"))[0] == "rare"
    both = _function("both", "mail zebra")
    assert _found("mail zebra", *common, _function("rare", "zebra"), both)[0] == "both"


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_parameters_are_looked_at_three_levels_deep(depth: int) -> None:
    schema: dict[str, Any] = _properties(zebra={"description": "A fish."})
    for _ in range(depth - 1):
        schema = _properties(inner=schema)
    assert bool(_found("zebra", _function("t", "", schema))) is (depth <= 3)
    assert bool(_found("fish", _function("t", "", schema))) is (depth <= 3)


# Names


def test_a_name_of_one_plain_word_is_one_among_names_alone() -> None:
    mail, archive = _function("mail", "Letters."), _function("archive", "Searches mail by its sender and its mail box.")
    assert _found("mail", archive, mail) == ["mail"] == _found("MAIL.", archive, mail)
    assert _found("mail archive", archive, mail) == ["archive", "mail"]
    assert "archive" in _found("mail of a sender", archive, mail)
    # One that is put together is a name wherever it stands.
    box = _function("mail_box", "x")
    assert _found("sender of mail_box", archive, box) == ["mail_box"]


def test_a_member_is_named_with_its_namespace_or_without() -> None:
    crm = _space("CRM", "Customers.", _function("get_it", "x"), _function("put_it", "x"))
    for query in ("crm.get_it", "crm__get_it", "get_it"):
        assert _found(f"the tool {query}", crm) == ["CRM.get_it"]
    assert _found("the crm of us", crm, _function("other", "crm crm of us")) == ["CRM.get_it", "CRM.put_it"]


# Limits


@pytest.mark.parametrize(("there", "come"), [(7, 7), (8, 8), (9, 8)])
def test_how_many_are_found_by_words(there: int, come: int) -> None:
    assert len(_found("mail", *[_function(f"t{number}", "mail") for number in range(there)])) == come


@pytest.mark.parametrize(("there", "come"), [(31, 31), (32, 32), (33, 32)])
def test_how_many_are_found_by_a_namespaces_name(there: int, come: int) -> None:
    tools = [_function(f"t{number}") for number in range(there)]
    assert len(_found("all of crm", _space("crm", "", *tools))) == come
    assert len(_found(" ".join(f"t{number}" for number in range(there)), *tools)) == come


def _sized(size: int, name: str) -> dict[str, Any]:
    """A tool that is declared in so many bytes."""
    made = _function(name, "mail ")
    return {**made, "description": "mail " + "x" * (size - len(json.dumps(made)))}


@pytest.mark.parametrize(("second", "come"), [(-1, 2), (0, 2), (1, 1)])
def test_how_large_what_is_found_may_be(second: int, come: int) -> None:
    tools = [_sized(40_000, "t0"), _sized((64 << 10) - 40_000 + second, "t1")]
    assert [len(one) for one in _raw(tools)] == [40_000, (64 << 10) - 40_000 + second]
    assert len(_found("mail", *tools)) == come
    # The first one is found however large it is, and ends the list.
    assert _found("mail", _sized(70_000, "t0"), _sized(100, "t1")) == ["t0"]


@pytest.mark.parametrize(("words", "counts"), [(15, True), (16, False)])
def test_of_a_query_so_many_words_count(words: int, counts: bool) -> None:
    query = " ".join([*(f"w{number}" for number in range(words)), "zebra"])
    assert bool(_found(query, _function("t", "zebra"))) is counts
    # A word that comes twice is one.
    assert _found("w w w " * 10 + "zebra", _function("t", "zebra")) == ["t"]


@pytest.mark.parametrize(("parameters", "counts"), [(125, True), (127, True), (128, False)])
def test_of_a_tool_so_many_words_count(parameters: int, counts: bool) -> None:
    described: dict[str, Any] = {f"w{number}": {} for number in range(parameters)} | {"zebra": {}}
    assert bool(_found("zebra", {"type": "function", "name": "", "parameters": _properties(**described)})) is counts


@pytest.mark.parametrize(("before", "counts"), [(1_995, True), (1_996, True), (1_997, False)])
def test_of_a_text_so_many_characters_count(before: int, counts: bool) -> None:
    # Four letters of the word are enough.
    text = "x" * (before - 1) + " zebra"
    assert bool(_found("zebra", _function("t", text))) is counts
    assert (_found(text, _function("zebra")) == ["zebra"]) is counts


def test_what_fits_much_worse_than_the_best_is_not_found() -> None:
    name, described, parameter = (
        _function("zebra_x"),
        _function("a", "zebra"),
        _function("b", "", _properties(zebra={})),
    )
    assert _found("zebra", name, described) == ["zebra_x", "a"]
    assert _found("zebra", name, parameter) == ["zebra_x"]
    assert _found("zebra", described, parameter) == ["a", "b"]


# What is given back


def test_functions_have_all_their_keys_and_members_stand_together() -> None:
    crm = _space("crm", "x", {"type": "function", "name": "get_one"}, {"type": "custom", "name": "get_two"})
    tools = [{"type": "custom", "name": "mail_c"}, crm, {"type": "function", "name": "mail_d", "strict": True}]
    found = [json.loads(bytes(one)) for one in find("mail_c get_one mail_d get_two", _raw(tools))]
    assert found == [
        {"type": "custom", "name": "mail_c"},
        {
            **crm,
            "tools": [
                {"type": "function", "name": "get_one", "parameters": None, "strict": None},
                {"type": "custom", "name": "get_two"},
            ],
        },
        {"type": "function", "name": "mail_d", "parameters": None, "strict": True},
    ]


# What the model is told of it


def _tool(*tools: dict[str, Any]) -> HostedTool:
    return HostedTool(0, "tool_search", b'{"type":"tool_search"}', searchable=tuple(_raw(tools)))


async def _listed(*tools: dict[str, Any]) -> list[str]:
    (function,) = (await ToolSearch().prepare("owner", "resp_1", _tool(*tools))).functions
    return function.description.split("There are:\n")[1].split("\n")


async def test_what_there_is_stands_in_a_line_each() -> None:
    assert await _listed(
        _function("a", " Does \n this. "), _function("b"), _space("crm", "Customers.", _function("c")), _space("d", "")
    ) == ["- a: Does this.", "- b", "- crm: Customers. (1 tools)", "- d: (0 tools)"]
    (long,) = await _listed(_function("a", "x" * 200))
    assert long == "- a: " + "x" * 155


@pytest.mark.parametrize("more", [0, 1])
async def test_as_many_lines_as_there_is_room_for(more: int) -> None:
    """4,000 characters: 25 lines of 160."""
    tools = [_function(f"{number:02}", "x" * 200) for number in range(24)]
    last = [_function("24", "x" * 200)] if not more else [_function("24", "x" * 200), _function("25", "x")]
    listed = await _listed(*tools, *last)
    assert len(listed) == 25 + more
    assert (listed[-1] == "- and 1 more") is bool(more)


async def test_arguments_must_be_an_object_with_a_query() -> None:
    target = CallTarget(CallKind.HOSTED_TOOL_SEARCH, "tool_search")
    tool = _tool(_function("mail", "x"))
    for arguments in ("{", "[]", '{"query": 5}', '"mail"', "\ud800"):
        with pytest.raises(ToolFailed, match="'query'"):
            await ToolSearch().run(HostedCall("call_1", "t", target, arguments, tool, "owner", "resp_1"))
    result = await ToolSearch().run(HostedCall("call_1", "t", target, '{"query":"mail"}', tool, "owner", "resp_1"))
    assert result.output == "1 declarations were found." and not result.failed
    assert [type(one) for one in result.fields["tools"]] == [Raw]
