"""tool_search that runs here: what a query means, what the model is shown turn by turn, what clients get and send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import Raw

from antiphon.config.tools import ToolSettings
from antiphon.engine.ports.actions import Chain, Context, StoredItem
from antiphon.engine.ports.hosted_tools import HostedCall, HostedTool, PreparedTool, ToolResult
from antiphon.tools.box import Toolbox
from antiphon.tools.tool_search import ToolSearch, find
from antiphon.translation.tool_map import CallKind, HostedFunction
from antiphon.types.items import McpListTools
from tests.support.exchanges import Outcome, converse
from tests.support.judge import check_response, check_stream, parse_sse
from tests.support.model_turns import Called, model_turn


def function(name: str, description: str = "", *, deferred: bool = True, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": told} for key, told in parameters.items()}
    made = {
        "type": "function",
        "name": name,
        "description": description,
        "parameters": {"type": "object", "properties": properties},
    }
    return {**made, "defer_loading": True} if deferred else made


def namespace(name: str, description: str, *tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": description, "tools": list(tools)}


RATES = function("get_exchange_rate", "Look up the rate between two currencies.", source="A currency such as USD.")
STOCKS = function("stockLookup", "Look up a price by its ticker.", symbol="The ticker.")
SEARCH = function("search", "Search the archive.")
CRM = namespace(
    "crm",
    "Customers and their orders.",
    function("list_orders", "Orders of a customer.", customer_id="Whose orders."),
    function("get_profile", "A customer's profile."),
    function("ping", "Whether the system answers.", deferred=False),
)
PATCH = {"type": "custom", "name": "apply", "description": "Change a file.", "defer_loading": True}
SHOWN = function("now", "The time.", deferred=False)
SERVER = {"type": "tool_search"}
TOOLS = [SERVER, RATES, STOCKS, SEARCH, CRM, PATCH, SHOWN]
SEARCHABLE = [RATES, STOCKS, SEARCH, {**CRM, "tools": CRM["tools"][:2]}, PATCH]


def found(query: str, searchable: list[dict[str, Any]] | None = None) -> list[str]:
    names = []
    for raw in find(query, [json.dumps(one).encode() for one in searchable or SEARCHABLE]):
        tool = json.loads(bytes(raw))
        names += [f"{tool['name']}.{one['name']}" for one in tool["tools"]] if "tools" in tool else [tool["name"]]
    return names


# What a query means


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("get_exchange_rate", "get_exchange_rate"),
        ("currency", "get_exchange_rate"),
        ("currencies", "get_exchange_rate"),
        ("convert USD", "get_exchange_rate"),
        ("stock prices", "stockLookup"),
        ("stocklookup", "stockLookup"),
        ("ticker", "stockLookup"),
        ("search", "search"),
        ("orders of a customer", "crm.list_orders"),
        ("crm.get_profile", "crm.get_profile"),
        ("crm__get_profile", "crm.get_profile"),
        ("customer_id", "crm.list_orders"),
        ("change a file", "apply"),
    ],
)
def test_the_best_comes_first(query: str, first: str) -> None:
    assert found(query)[0] == first


def test_a_name_goes_before_words_and_a_namespace_means_all_its_tools() -> None:
    assert found("get_exchange_rate") == ["get_exchange_rate"]
    assert found("get_exchange_rate, stockLookup") == ["get_exchange_rate", "stockLookup"]
    assert sorted(found("crm")) == ["crm.get_profile", "crm.list_orders"]
    assert sorted(found("a profile in the crm")) == ["crm.get_profile", "crm.list_orders"]
    # A plain word among others is no name.
    assert "crm.list_orders" in found("search for orders")


@pytest.mark.parametrize("query", ["", "   ", "zebra", "???", "\ud800", "(", "\x00"])
def test_nothing_is_found_for_what_fits_nothing(query: str) -> None:
    assert found(query) == []


def test_the_result_is_bounded_and_always_the_same() -> None:
    many = [function(f"tool_{number}", "Does a thing with mail.") for number in range(100)]
    assert found("mail", many) == [f"tool_{number}" for number in range(8)] == found("mail", many)
    large = [function(f"tool_{number}", "mail " + "x" * 30_000) for number in range(10)]
    assert found("mail", large) == ["tool_0", "tool_1"]
    assert found("mail", [function("one", "mail " + "x" * 100_000)]) == ["one"]


@pytest.mark.parametrize("parameters", [{}, {"properties": 5}, {"properties": {"a": 5, "b": {"description": []}}}])
def test_odd_schemas_are_searched_as_far_as_they_go(parameters: Any) -> None:
    tool = {"type": "function", "name": "odd", "parameters": parameters}
    assert found("odd", [tool]) == ["odd"]


# A response with a search in it


async def talk(*turns: list[Called] | str, stream: bool = True, **request: Any) -> Outcome:
    said = [
        model_turn(turn, stream=stream) if isinstance(turn, str) else model_turn("", *turn, stream=stream, pieces=2)
        for turn in turns
    ]
    context, box = request.pop("context", None), request.pop("box", Toolbox([ToolSearch()], ToolSettings()))
    body = {"model": "m", "input": "Rate?", "tools": TOOLS, "stream": stream, **request}
    return await converse(body, said, box, context=context)


def search(query: Any = "currency") -> list[Called]:
    return [("tool_search", json.dumps({"query": query}))]


def shown(outcome: Outcome, turn: int) -> list[str]:
    return [one["function"]["name"] for one in json.loads(outcome.calls[turn].request.body).get("tools", [])]


def final(outcome: Outcome, stream: bool) -> dict[str, Any]:
    response = check_stream(parse_sse(outcome.body)) if stream else outcome.json
    check_response(response)
    assert isinstance(response, dict)
    return response


@pytest.mark.parametrize("stream", [True, False])
async def test_what_is_found_can_be_called_in_the_next_turn(stream: bool) -> None:
    outcome = await talk(search(), [("get_exchange_rate", '{"source":"USD"}')], stream=stream)
    response = final(outcome, stream)
    call, output, made = response["output"]
    assert call == {
        "type": "tool_search_call",
        "id": call["id"],
        "status": "completed",
        "call_id": None,
        "execution": "server",
        "arguments": {"query": "currency"},
    }
    assert output == {
        "type": "tool_search_output",
        "id": output["id"],
        "status": "completed",
        "call_id": None,
        "execution": "server",
        "tools": [{**RATES, "strict": None}],
    }
    assert call["id"].startswith("tsc_") and output["id"].startswith("tso_")
    assert (made["type"], made["name"], made["arguments"]) == ("function_call", "get_exchange_rate", '{"source":"USD"}')
    assert shown(outcome, 0) == ["tool_search", "crm__ping", "now"]
    # What is loaded comes last, so that the declarations before it stay as they were.
    assert shown(outcome, 1) == ["tool_search", "crm__ping", "now", "get_exchange_rate"]
    *_, asked, told = json.loads(outcome.calls[1].request.body)["messages"]
    assert asked["tool_calls"][0]["function"] == {"name": "tool_search", "arguments": '{"query":"currency"}'}
    assert told["role"] == "tool" and "get_exchange_rate: Look up the rate" in told["content"]
    described = json.loads(outcome.calls[0].request.body)["tools"][0]["function"]["description"]
    assert (
        "- get_exchange_rate: Look up the rate" in described
        and "- crm: Customers and their orders. (2 tools)" in described
    )
    assert "now" not in described.split("There are:")[1]
    assert {"type": "tool_search", "description": None, "parameters": None} in response["tools"]
    assert outcome.head is not None and "antiphon-ignored" not in dict(outcome.head.headers)


async def test_the_events_of_a_search() -> None:
    events = parse_sse((await talk(search(), "Done.")).body)
    about = [event for event in events if event.get("item", {}).get("type", "").startswith("tool_search")]
    assert [(event["type"], event["item"]["type"], event["item"]["status"]) for event in about] == [
        ("response.output_item.added", "tool_search_call", "in_progress"),
        ("response.output_item.done", "tool_search_call", "completed"),
        ("response.output_item.added", "tool_search_output", "in_progress"),
        ("response.output_item.done", "tool_search_output", "completed"),
    ]
    assert about[0]["item"]["arguments"] == {} and about[2]["item"]["tools"] == []


async def test_a_namespace_is_loaded_with_the_members_that_were_found() -> None:
    outcome = await talk(search("orders of customers"), [("crm__list_orders", "{}")])
    _, output, made = final(outcome, True)["output"]
    (loaded,) = output["tools"]
    assert (loaded["type"], loaded["name"]) == ("namespace", "crm")
    assert "list_orders" in [one["name"] for one in loaded["tools"]]
    assert "crm__list_orders" in shown(outcome, 1)
    assert (made["name"], made["namespace"]) == ("list_orders", "crm")


async def test_several_searches_in_one_turn() -> None:
    outcome = await talk([*search("currency"), *search("ticker")], "Done.")
    kinds = [item["type"] for item in final(outcome, True)["output"]]
    assert kinds == ["tool_search_call", "tool_search_output"] * 2 + ["message"]
    assert shown(outcome, 1)[-2:] == ["get_exchange_rate", "stockLookup"]
    messages = json.loads(outcome.calls[1].request.body)["messages"]
    called = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    assert len(called) == 2 and [one["tool_call_id"] for one in messages if one["role"] == "tool"] == called


def told(outcome: Outcome, turn: int) -> list[str]:
    """What the model reads of the results so far."""
    messages = json.loads(outcome.calls[turn].request.body)["messages"]
    return [one["content"] for one in messages if one["role"] == "tool"]


def stored(outcome: Outcome) -> Context:
    """The conversation as the store gives it back."""
    (record,) = outcome.records
    return Context(chain=Chain((*record.input_items, *record.output_items)))


async def test_a_search_that_finds_nothing_says_so() -> None:
    outcome = await talk(search("zebra"), "Sorry.")
    call, output, message = final(outcome, True)["output"]
    assert (call["status"], output["status"], output["tools"]) == ("completed", "completed", [])
    assert message["type"] == "message" and told(outcome, 1) == ["No tools were found."]
    assert "get_exchange_rate" not in shown(outcome, 1)


@pytest.mark.parametrize(
    "arguments", ["", "{", "[1]", "null", "{}", '{"query":5}', '{"query":" "}', '{"paths":["crm"]}']
)
async def test_a_search_that_cannot_be_understood_tells_the_model_how_to_search(arguments: str) -> None:
    outcome = await talk([("tool_search", arguments)], "Sorry.")
    call, output, message = final(outcome, True)["output"]
    assert isinstance(call["arguments"], dict) and output["tools"] == [] and message["type"] == "message"
    assert (call["status"], output["status"]) == ("incomplete", "incomplete")
    (said,) = told(outcome, 1)
    assert "must be a JSON object with 'query', a string" in said
    # Later requests say the same, whoever keeps the conversation.
    replayed = await talk("Yes.", input=[{"role": "user", "content": "Rate?"}, call, output, message])
    continued = await talk("Yes.", previous_response_id="resp_1", context=stored(outcome))
    assert told(replayed, 0) == told(continued, 0) == [said]


async def test_a_search_that_was_not_to_run_any_more_is_shown_with_what_it_was_told() -> None:
    calls = [*search("currency"), *search("ticker"), ("tool_search", "{}")]
    outcome = await talk(calls, "Done.", max_tool_calls=1)
    kinds = [item["type"] for item in final(outcome, True)["output"]]
    assert kinds == ["tool_search_call", "tool_search_output", "message"]
    found_one, *limited = told(outcome, 1)
    assert "get_exchange_rate" in found_one and len(limited) == 2
    assert all(one.startswith("The limit of tool calls") for one in limited)
    continued = await talk("Yes.", previous_response_id="resp_1", context=stored(outcome))
    before = json.loads(outcome.calls[1].request.body)["messages"]
    assert json.loads(continued.calls[0].request.body)["messages"][: len(before)] == before


async def test_a_conversation_goes_on_behind_a_search_that_was_cut() -> None:
    call = {"type": "tool_search_call", "id": "t", "status": "incomplete", "execution": "server", "arguments": {}}
    outcome = await talk("Hi.", input=[{"role": "user", "content": "Rate?"}, call, {"role": "user", "content": "So?"}])
    roles = [message["role"] for message in json.loads(outcome.calls[0].request.body)["messages"]]
    assert roles == ["user", "assistant", "tool", "user"] and told(outcome, 0) == ["The search was broken off."]
    # A search of the client's is waited for.
    waiting = {**call, "call_id": "t", "execution": "client"}
    refused = await talk("Hi.", input=[{"role": "user", "content": "Rate?"}, waiting], stream=False)
    assert "No tool output found for function call t" in refused.json["error"]["message"]


async def test_a_call_of_the_clients_beside_a_search_ends_the_response() -> None:
    outcome = await talk([*search(), ("now", "{}")])
    kinds = [item["type"] for item in final(outcome, True)["output"]]
    assert sorted(kinds) == ["function_call", "tool_search_call", "tool_search_output"] and len(outcome.calls) == 1


# Later turns


async def test_what_was_loaded_stays_in_later_turns() -> None:
    outcome = await talk(search(), [("get_exchange_rate", "{}")])
    output = final(outcome, True)["output"]
    answered = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "0.92"}
    replayed = await talk("0.92", input=[{"role": "user", "content": "Rate?"}, *output, answered])
    stored = tuple(StoredItem(item["id"], item["type"], json.dumps(item).encode()) for item in output)
    asked = StoredItem("msg_1", "message", b'{"type":"message","role":"user","content":"Rate?"}')
    continued = await talk(
        "0.92", input=[answered], previous_response_id="resp_1", context=Context(chain=Chain((asked, *stored)))
    )
    for later in (replayed, continued):
        before = json.loads(outcome.calls[1].request.body)["messages"]
        assert final(later, True)["output"][0]["type"] == "message"
        assert shown(later, 0) == shown(outcome, 1)
        # The next turn begins with this one, so that servers find it in their caches.
        messages = json.loads(later.calls[0].request.body)["messages"]
        for message in (*messages, *before):
            for call in message.get("tool_calls") or ():
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        assert messages[: len(before)] == before


# Without a search


async def test_without_deferred_tools_there_is_nothing_to_search() -> None:
    outcome = await talk("Hi.", tools=[SERVER, SHOWN])
    assert shown(outcome, 0) == ["now"] and final(outcome, True)["output"][0]["type"] == "message"


async def test_a_namespace_of_tools_that_are_all_shown_is_nothing_to_search() -> None:
    outcome = await talk("Hi.", tools=[SERVER, namespace("clock", "What time it is.", SHOWN)])
    assert shown(outcome, 0) == ["clock__now"]


async def test_a_search_of_the_clients_is_the_clients() -> None:
    outcome = await talk(search(), tools=[{**SERVER, "execution": "client"}, RATES])
    (call,) = final(outcome, True)["output"]
    assert (call["execution"], call["call_id"] is not None) == ("client", True)


async def test_a_choice_of_the_search_makes_the_model_search_once() -> None:
    outcome = await talk(search(), "Done.", tool_choice={"type": "tool_search"})
    first, second = (json.loads(call.request.body) for call in outcome.calls)
    assert first["tool_choice"]["function"]["name"] == "tool_search" and second.get("tool_choice") in (None, "auto")


def allowing(*tools: dict[str, Any], mode: str = "auto") -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": mode, "tools": list(tools)}


NOW = {"type": "function", "name": "now"}


async def test_a_choice_that_allows_the_search_alone_allows_what_it_finds() -> None:
    choice = allowing(SERVER, NOW)
    outcome = await talk(search(), [("get_exchange_rate", "{}")], tool_choice=choice)
    assert shown(outcome, 0) == ["tool_search", "now"]
    assert shown(outcome, 1) == ["tool_search", "now", "get_exchange_rate"]
    output = final(outcome, True)["output"]
    assert output[-1]["name"] == "get_exchange_rate"
    answered = {"type": "function_call_output", "call_id": output[-1]["call_id"], "output": "0.92"}
    later = await talk("0.92", input=[{"role": "user", "content": "Rate?"}, *output, answered], tool_choice=choice)
    assert shown(later, 0) == shown(outcome, 1)


async def test_of_deferred_tools_that_a_choice_names_none_else_is_found() -> None:
    choice = allowing(SERVER, {"type": "function", "name": "stockLookup"}, {"type": "namespace", "name": "crm"})
    outcome = await talk(search("exchange"), search("stock, orders, exchange"), "Done.", tool_choice=choice)
    assert shown(outcome, 0) == ["tool_search", "crm__ping"]
    described = json.loads(outcome.calls[0].request.body)["tools"][0]["function"]["description"]
    assert "get_exchange_rate" not in described and "- stockLookup" in described and "- crm" in described
    assert shown(outcome, 1) == shown(outcome, 0)
    assert "stockLookup" in shown(outcome, 2) and "get_exchange_rate" not in shown(outcome, 2)


async def test_a_choice_without_the_search_shows_its_deferred_tools_and_no_other() -> None:
    outcome = await talk("Hi.", tool_choice=allowing({"type": "function", "name": "stockLookup"}, NOW))
    assert shown(outcome, 0) == ["stockLookup", "now"]


async def test_what_a_client_found_may_be_called_where_its_search_is_allowed() -> None:
    call = {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "rate"}}
    output = {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [RATES, STOCKS]}
    asked: dict[str, Any] = {
        "input": [{"role": "user", "content": "Rate?"}, call, output],
        "tools": [{**SERVER, "execution": "client"}, SHOWN],
    }
    assert shown(await talk("Hi.", **asked, tool_choice=allowing(SERVER)), 0) == [
        "tool_search",
        "get_exchange_rate",
        "stockLookup",
    ]
    named = allowing(SERVER, {"type": "function", "name": "stockLookup"})
    outcome = await talk(
        "Hi.", **asked, previous_response_id="resp_1", context=Context(chain=Chain(())), tool_choice=named
    )
    assert shown(outcome, 0) == ["tool_search", "stockLookup"]


async def test_members_that_programs_alone_may_call_are_not_found() -> None:
    hidden = {**function("secret_orders"), "allowed_callers": ["programmatic"]}
    whole = {**namespace("crm", "Customers.", hidden, function("list_orders", deferred=False)), "defer_loading": True}
    outcome = await talk(search("orders"), "Done.", tools=[SERVER, whole])
    assert shown(outcome, 0) == ["tool_search"] and shown(outcome, 1) == ["tool_search", "crm__list_orders"]
    assert "(1 tools)" in json.loads(outcome.calls[0].request.body)["tools"][0]["function"]["description"]


def test_all_that_a_namespace_has_is_found_by_its_name() -> None:
    many = namespace("mail", "Mail.", *(function(f"tool_{number}") for number in range(40)))
    assert len(found("mail", [many])) == 32 and len(found("mails", [many])) == 8


async def test_the_listing_is_bounded() -> None:
    many = [function(f"tool_{number}", "x" * 500) for number in range(50)]
    outcome = await talk("Hi.", tools=[SERVER, *many])
    described = json.loads(outcome.calls[0].request.body)["tools"][0]["function"]["description"]
    *lines, last = described.split("There are:\n")[1].splitlines()
    assert {len(line) for line in lines} == {160} and len(lines) == 25 and last == "- and 25 more"


def test_only_so_deep_and_so_far_is_looked_for_words() -> None:
    leaf: dict[str, Any] = {"type": "object", "properties": {"deepest": {"type": "string"}}}
    for name in ("third", "second", "first"):
        leaf = {"type": "object", "properties": {name: leaf}}
    tool = {**function("one"), "parameters": leaf}
    assert found("third", [tool]) == ["one"] and found("deepest", [tool]) == []
    long = function("two", "x " * 1_000 + "beyond")
    assert found("beyond", [long]) == []
    # Of the words of a query the first so many count.
    padding = [f"{one}{two}x" for one in "abcd" for two in "efgh"]
    assert found(" ".join([*padding, "currency"])) == []
    assert found(" ".join([*padding[1:], "currency"])) == ["get_exchange_rate"]


# Tools of MCP servers


class Dice:
    """An MCP server's tools, as the toolbox knows them."""

    types = frozenset({"mcp"})

    async def prepare(self, owner: str, response_id: str, tool: HostedTool) -> PreparedTool:
        declared = json.loads(tool.declaration)
        functions = [
            HostedFunction(
                CallKind.MCP,
                name,
                f"{name.title()} something.",
                Raw(b'{"type":"object","properties":{"sides":{"type":"integer"}}}'),
                namespace=declared["server_label"],
                deferred=declared.get("defer_loading", False),
            )
            for name in ("roll", "toss")
        ]
        listed = McpListTools(id="mcpl_1", server_label=declared["server_label"], tools=Raw(b"[]"))
        return PreparedTool(tool, tuple(functions), (listed,))

    async def run(self, call: HostedCall) -> ToolResult:
        return ToolResult(call.call_id, f"{call.target.name}: 4", {"output": f"{call.target.name}: 4"})

    async def aclose(self) -> None:
        """There is nothing to close."""


DICE = {
    "type": "mcp",
    "server_label": "dice",
    "server_description": "Games of chance.",
    "server_url": "https://dice.example/mcp",
    "authorization": "s3cret",
    "require_approval": "never",
    "defer_loading": True,
}
BOX = Toolbox([ToolSearch(), Dice()], ToolSettings())


async def test_tools_of_a_deferred_server_are_hidden_until_they_are_found_and_run_then() -> None:
    outcome = await talk(search("roll"), [("dice__roll", "{}")], "4.", tools=[SERVER, DICE, SHOWN], box=BOX)
    assert [shown(outcome, turn) for turn in range(3)] == [
        ["tool_search", "now"],
        ["tool_search", "now", "dice__roll"],
        ["tool_search", "now", "dice__roll"],
    ]
    described = json.loads(outcome.calls[0].request.body)["tools"][0]["function"]["description"]
    assert "- dice: Games of chance." in described
    output = final(outcome, True)["output"]
    assert [item["type"] for item in output][1:] == ["tool_search_call", "tool_search_output", "mcp_call", "message"]
    assert output[2]["tools"] == [
        {
            "type": "mcp",
            "server_label": "dice",
            "server_description": "Games of chance.",
            "allowed_tools": ["roll"],
        }
    ]
    assert told(outcome, 1) == ["Tools that can be called now:\ndice__roll"] and told(outcome, 2)[-1] == "roll: 4"
    assert b"s3cret" not in outcome.body and all(b"s3cret" not in call.request.body for call in outcome.calls)
    # What was found stays, whoever keeps the conversation.
    replayed = [{"role": "user", "content": "Rate?"}, *output]
    for later in (
        await talk("4.", input=replayed, tools=[SERVER, DICE, SHOWN], box=BOX),
        await talk("4.", previous_response_id="r", context=stored(outcome), tools=[SERVER, DICE, SHOWN], box=BOX),
    ):
        assert shown(later, 0) == shown(outcome, 2)
    # Without the server there is nothing to show.
    gone = await talk("4.", input=replayed, tools=[SERVER, SHOWN], box=BOX)
    assert shown(gone, 0) == ["now"] and gone.head is not None
    assert dict(gone.head.headers)["antiphon-ignored"] == "tools.mcp"


async def test_a_servers_name_means_all_its_tools() -> None:
    outcome = await talk(search("dice"), "Done.", tools=[SERVER, DICE, SHOWN, RATES], box=BOX)
    assert shown(outcome, 1) == ["tool_search", "now", "dice__roll", "dice__toss"]


@pytest.mark.parametrize(
    ("named", "hidden"),
    [
        ({"type": "mcp", "server_label": "dice"}, {"get_exchange_rate"}),
        ({"type": "mcp", "server_label": "dice", "name": "toss"}, {"dice__roll", "get_exchange_rate"}),
        ({"type": "function", "name": "get_exchange_rate"}, {"dice__roll", "dice__toss"}),
        (NOW, set[str]()),
    ],
)
async def test_a_choice_bounds_what_is_found_of_servers(named: dict[str, Any], hidden: set[str]) -> None:
    every = search("roll, toss, exchange")
    outcome = await talk(
        every, "Done.", tools=[SERVER, DICE, SHOWN, RATES], box=BOX, tool_choice=allowing(SERVER, named)
    )
    everything = {"dice__roll", "dice__toss", "get_exchange_rate"}
    assert set(shown(outcome, 1)) - {"tool_search", "now"} == everything - hidden
    # What may not be called is not told of either.
    assert {name for name in everything if name in told(outcome, 1)[0]} == everything - hidden


async def test_a_choice_of_a_servers_tool_shows_it() -> None:
    choice = {"type": "mcp", "server_label": "dice", "name": "toss"}
    outcome = await talk([("dice__toss", "{}")], "4.", tools=[SERVER, DICE, SHOWN], box=BOX, tool_choice=choice)
    assert outcome.chat["tools"] and "dice__toss" in shown(outcome, 0) and "dice__roll" not in shown(outcome, 0)


async def test_without_a_search_a_deferred_server_is_shown() -> None:
    outcome = await talk("Hi.", tools=[DICE], box=BOX)
    assert shown(outcome, 0) == ["dice__roll", "dice__toss"]


@pytest.mark.parametrize("entry", [{"type": "mcp"}, {"type": "mcp", "server_label": "x", "allowed_tools": 5}])
async def test_what_names_no_tools_of_a_server_brings_none(entry: dict[str, Any]) -> None:
    items = [
        {"type": "tool_search_call", "id": "t", "execution": "server", "arguments": {"query": "q"}},
        {"type": "tool_search_output", "execution": "server", "tools": [entry]},
    ]
    outcome = await talk("Hi.", input=[{"role": "user", "content": "Hi"}, *items], tools=[SERVER, DICE], box=BOX)
    assert shown(outcome, 0) == ["tool_search"] and told(outcome, 0) == ["No tools were found."]


# What is too large


def test_of_a_declaration_and_a_query_only_so_much_counts() -> None:
    properties = {f"word{number}x": {"type": "string"} for number in range(50_000)}
    large = {**function("large"), "parameters": {"type": "object", "properties": properties}}
    assert found("word1x", [large]) == ["large"] and found("word40000x", [large]) == []
    words = " ".join(f"nothing{number}" for number in range(100))
    assert found(f"rate {words}") == ["get_exchange_rate"] and found(f"{words} rate") == []
