"""Let Antiphon call the tools of an MCP server, which the operator has registered as the connector `trains`."""

import os

from openai import OpenAI

client = OpenAI(base_url=os.environ.get("ANTIPHON_URL", "http://127.0.0.1:8080/v1"), api_key="anything")
model = os.environ.get("MODEL", "demo")

trains = {"type": "mcp", "server_label": "trains", "connector_id": "trains", "require_approval": "never"}
response = client.responses.create(model=model, input="When are the departures in Oslo?", tools=[trains])
for item in response.output:
    if item.type == "mcp_list_tools":
        print("tools:", ", ".join(tool.name for tool in item.tools))
    elif item.type == "mcp_call":
        print("called:", item.name, item.arguments, "->", item.output)
print("model:", response.output_text)
