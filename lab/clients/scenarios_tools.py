"""Tests hosted tools (web search and MCP) with Python libraries: their declarations, and how the libraries parse the
items.

The MCP server is a published package, not Antiphon's (`tool_servers.py`).
"""

import asyncio
import os

import openai
from agents import Agent, HostedMCPTool, OpenAIResponsesModel, Runner, WebSearchTool
from langchain_openai import ChatOpenAI
from pydantic_ai import Agent as PydanticAgent
from pydantic_ai import MCPServerTool
from pydantic_ai import WebSearchTool as PydanticWebSearch
from pydantic_ai.capabilities import NativeTool
from pydantic_ai.messages import NativeToolCallPart, NativeToolReturnPart
from pydantic_ai.models.openai import OpenAIResponsesModel as PydanticModel
from pydantic_ai.providers.openai import OpenAIProvider
from strict import BASE_URL, named, received, same, script

MCP_URL = os.environ["MCP_URL"]
SEARCH = {"calls": [{"name": "web_search", "arguments": {"query": "swifts"}}]}
CITED = {"content": "They sleep in the air\u30101\u3011."}
MCP = {
    "type": "mcp",
    "server_label": "all",
    "server_url": MCP_URL,
    "allowed_tools": ["echo", "get-sum", "get-tiny-image"],
}


def echo(message):
    return {"calls": [{"name": "all__echo", "arguments": {"message": message}}]}


def agent(*tools):
    model = OpenAIResponsesModel("strict", openai.AsyncOpenAI(base_url=BASE_URL, api_key="k"))
    return Agent(name="a", instructions="Be brief.", model=model, tools=list(tools))


def client():
    return openai.OpenAI(base_url=BASE_URL, api_key="k", max_retries=0)


def kind_of(item):
    """The type of an item. The agent's own approval answers are dicts."""
    return item.raw_item["type"] if isinstance(item.raw_item, dict) else item.raw_item.type


def agents_web_search():
    script(SEARCH, CITED)
    tool = WebSearchTool(search_context_size="low", user_location={"type": "approximate", "city": "Bonn"})
    made = Runner.run_sync(agent(tool), "Where do swifts sleep?")
    same(made.final_output, "They sleep in the air.")
    call = next(item.raw_item for item in made.new_items if item.raw_item.type == "web_search_call")
    same((call.status, call.action.type, call.action.query), ("completed", "search", "swifts"))
    [cited] = made.new_items[-1].raw_item.content[0].annotations
    same((cited.type, cited.title, cited.start_index, cited.end_index), ("url_citation", "Swifts", 0, 21))
    first, second = received()
    same([one["function"]["name"] for one in first["tools"]], ["web_search", "open_page", "find_in_page"])
    assert "Bonn" in first["tools"][0]["function"]["description"]
    assert "About swifts." in second["messages"][-1]["content"]
    # The agent sends its items again in the next request.
    script({"content": "Yes."})
    again = Runner.run_sync(agent(tool), [*made.to_input_list(), {"role": "user", "content": "Sure?"}])
    same(again.final_output, "Yes.")


def agents_mcp():
    script(echo("hello"), {"content": "It said hello."})
    made = Runner.run_sync(agent(HostedMCPTool(tool_config={**MCP, "require_approval": "never"})), "Say hello.")
    same(made.final_output, "It said hello.")
    items = {item.raw_item.type: item.raw_item for item in made.new_items}
    same(sorted(tool.name for tool in items["mcp_list_tools"].tools), sorted(MCP["allowed_tools"]))
    same((items["mcp_call"].name, items["mcp_call"].output, items["mcp_call"].error), ("echo", "Echo: hello", None))


def agents_mcp_approval():
    """The agent calls its callback for the approval, and sends the answer with all its items."""
    asked = []

    def decide(request):
        asked.append((request.data.name, request.data.arguments))
        return {"approve": "yes" in request.data.arguments, "reason": "not that"}

    tool = HostedMCPTool(tool_config={**MCP, "require_approval": "always"}, on_approval_request=decide)
    script(echo("yes"), {"content": "Done."})
    made = Runner.run_sync(agent(tool), "Say yes.")
    same((made.final_output, len(asked)), ("Done.", 1))
    [call] = [item.raw_item for item in made.new_items if kind_of(item) == "mcp_call"]
    same((call.output, bool(call.approval_request_id)), ("Echo: yes", True))
    script(echo("no"), {"content": "Not done."})
    made = Runner.run_sync(agent(tool), "Say no.")
    same((made.final_output, len(asked)), ("Not done.", 2))
    assert "mcp_call" not in map(kind_of, made.new_items)


def openai_events():
    """The SDK parses every event into its own types, and accumulates the response."""
    script(
        {"calls": [SEARCH["calls"][0], {"name": "all__get-sum", "arguments": {"a": 2, "b": 3}}]},
        {"content": "Five\u30101\u3011."},
    )
    tools = [{"type": "web_search"}, {**MCP, "require_approval": "never"}]
    with client().responses.stream(model="strict", input="go", tools=tools) as stream:
        kinds = [event.type.removeprefix("response.") for event in stream]
        final = stream.get_final_response()
    wanted = [
        *("mcp_list_tools.in_progress", "mcp_list_tools.completed", "web_search_call.in_progress"),
        *("web_search_call.searching", "web_search_call.completed", "mcp_call.in_progress"),
        *("mcp_call_arguments.delta", "mcp_call_arguments.done", "mcp_call.completed"),
    ]
    same([kind for kind in kinds if kind.startswith(("mcp", "web"))], wanted)
    same(final.output_text, "Five.")
    assert "5" in next(item.output for item in final.output if item.type == "mcp_call")


def openai_picture():
    """The model sees an image that the MCP server returns."""
    script({"calls": [{"name": "all__get-tiny-image", "arguments": {}}]}, {"content": "A logo."})
    made = client().responses.create(model="strict", input="look", tools=[{**MCP, "require_approval": "never"}])
    same(made.output_text, "A logo.")
    shown = received()[-1]["messages"][-1]
    same((shown["role"], shown["content"][-1]["type"]), ("user", "image_url"))


def openai_secrets():
    """No answer contains the credentials of the MCP server."""
    script({"content": "Hi."})
    opening = {"authorization": "s3cret-1", "headers": {"X-Key": "s3cret-2"}}
    made = client().responses.create(model="strict", input="hi", tools=[{**MCP, **opening}])
    assert "s3cret" not in made.model_dump_json()
    assert "s3cret" not in client().responses.retrieve(made.id).model_dump_json()


def pydantic_ai_tools():
    model = PydanticModel("strict", provider=OpenAIProvider(base_url=BASE_URL, api_key="k"))
    mcp = MCPServerTool(id="all", url=MCP_URL, allowed_tools=["echo"])
    made = PydanticAgent(model, capabilities=[NativeTool(PydanticWebSearch()), NativeTool(mcp)])
    script(SEARCH, echo("hello"), {"content": "Done."})
    result = asyncio.run(made.run("go"))
    same(result.output, "Done.")
    parts = [part for message in result.all_messages() for part in message.parts]
    calls = [part.tool_name for part in parts if isinstance(part, NativeToolCallPart)]
    returns = [part for part in parts if isinstance(part, NativeToolReturnPart)]
    same(sorted(calls), ["mcp_server:all", "mcp_server:all", "web_search"])
    assert any("Echo: hello" in str(part.content) for part in returns), returns
    script({"content": "Again."})
    same(asyncio.run(made.run("more", message_history=result.all_messages())).output, "Again.")


def langchain_tools():
    options = {"model": "strict", "base_url": BASE_URL, "api_key": "k", "use_responses_api": True}
    bound = ChatOpenAI(**options).bind_tools([{"type": "web_search"}, {**MCP, "require_approval": "never"}])
    script(SEARCH, echo("hello"), CITED)
    made = bound.invoke("go")
    same(made.text, "They sleep in the air.")
    kinds = [block["type"] for block in made.content if isinstance(block, dict)]
    for kind in ("web_search_call", "mcp_list_tools", "mcp_call", "text"):
        assert kind in kinds, kinds
    script({"content": "Again."})
    same(bound.invoke([("user", "go"), made, ("user", "more")]).text, "Again.")


SCENARIOS = named(
    *(agents_web_search, agents_mcp, agents_mcp_approval, openai_events, openai_picture, openai_secrets),
    *(pydantic_ai_tools, langchain_tools),
)
