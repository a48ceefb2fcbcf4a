"""A minimal MCP server on standard input and output, for Codex: one tool, `lookup_city`, with the standard library
only.

Each line is one JSON-RPC message, as in the protocol's stdio transport. A message that is not a request gets no answer.
"""

import json
import sys

TOOL = {
    "name": "lookup_city",
    "description": "The code of a city.",
    "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def answer(method, params):
    """The result of one request, or None for an unknown method."""
    if method == "initialize":
        info = {"name": "city", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info}
    if method == "tools/list":
        return {"tools": [TOOL]}
    if method == "tools/call":
        return {"content": [{"type": "text", "text": f"code-{params['arguments']['city']}-7731"}]}
    return {} if method == "ping" else None


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or "method" not in message:
        continue
    result = answer(message["method"], message.get("params") or {})
    missing = {"error": {"code": -32601, "message": "no such method"}}
    body = missing if result is None else {"result": result}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **body}), flush=True)
