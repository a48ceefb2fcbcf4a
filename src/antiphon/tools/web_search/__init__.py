"""Implements the hosted tool `web_search`: the model searches the web and reads pages.

Lives here: the tool (`tool.py`), and clients for search services such as SearXNG (`providers.py`).
"""
