"""Implements the hosted tools, such as `web_search`. The sidecar itself runs the hosted tools when the model calls
them.

`box.py` dispatches calls to the tools, and the other modules implement one tool each. `engine/exchange/tool_turns.py`
decides which calls of a response run, and the order of their items. `translation/events/item_events.py` makes the items
and events of a call.

To add a hosted tool:
- Write a class that implements `box.ServerTool`.
- Add a `CallKind`, an item class in `types/items.py`, and the events of the item.
- Add one line in `app/tools.py`. The contract tests of tools then also run on the new tool.
"""
