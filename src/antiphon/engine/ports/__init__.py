"""Ports of the engine: values and Protocols, without behaviour of their own.

Implementations live in `stores`, `tools`, `search` and `upstream` and never import each other.
"""
