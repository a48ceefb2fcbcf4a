"""Implements the hosted tool `mcp`: the sidecar calls tools of MCP servers for the model.

Lives here: checking a declaration and its server (`servers.py`), connections to servers (`connections.py`), and the
tool (`tool.py`). Not here: the MCP protocol, which the official SDK implements.
"""
