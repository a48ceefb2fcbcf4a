"""The pure part of the engine: one response from its request bytes to its last event, without I/O.

Invariant: nothing here awaits, reads a clock, logs or imports what does; a contract of imports guards the folder.
"""
