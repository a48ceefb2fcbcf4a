"""`mcp`: the gateway calls tools of MCP servers.

Lives here: what a request may declare and which servers may be reached (`servers.py`), connections to them
(`connections.py`), and the tool (`tool.py`). Not here: the protocol itself (the official SDK).
"""
