"""`web_search`: the model searches the web and reads pages.

Lives here: the tool (`tool.py`), the search services it can ask (`providers.py`).
"""
