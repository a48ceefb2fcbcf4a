"""Turns one request's bytes into one response, from the first event to the last, without I/O.

Invariant: no code in this package awaits, reads a clock or logs, or imports a module that does. An import contract
enforces this invariant.
"""
