"""Hosted tools: tools that the gateway runs itself when the model calls them.

Lives here: one module for each tool, and `box.py`, which holds them together. Not here: when a call runs and what its
item looks like (`engine/exchange/tool_turns.py`, `translation/events/hosted_events.py`).

To add a tool:
- Write a class with `types`, `prepare` and `run` (`box.ServerTool`).
- Add a `CallKind`, and an item in `types/items.py` with its events.
- Add one line in `app/tools.py`. The tool contract suite runs on the tool.
"""
