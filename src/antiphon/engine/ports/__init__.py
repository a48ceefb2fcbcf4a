"""Defines the engine's ports: plain values, and the Protocols through which the engine reaches stores and networks.

The packages `stores`, `tools`, `search` and `upstream` contain the implementations. These packages never import each
other.
"""
