"""Implements the hosted tools. The sidecar itself runs these tools when the model calls them.

Lives here: the modules of each tool, and `box.py`, which dispatches calls to the tools. Not here: the order
of calls in a response (`engine/exchange/tool_turns.py`), the items and events of a call
(`translation/events/item_events.py`).

To add a hosted tool:
- Write a class that implements `box.ServerTool`.
- Add a `CallKind`, an item class in `types/items.py`, and the events of the item.
- Add one line in `app/tools.py`. The tool contract tests run on every tool of that module.
"""
