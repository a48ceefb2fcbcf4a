"""What the engine needs from the world: values and Protocols, without behaviour of their own.

Implementations live in `stores`, `tools`, `search` and `upstream` and never import each other.
"""
