"""Defines the engine's ports: plain values, and the Protocols through which the engine reaches stores and networks.

The implementations live in `stores`, `tools`, `search` and `upstream`. They never import each other.
"""
