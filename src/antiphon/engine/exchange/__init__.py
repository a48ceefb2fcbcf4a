"""Turns one request's bytes into one response, from the first event to the last, without I/O.

Invariant: no code in this package awaits, reads a clock, logs, or imports a module that does one of these.
`lint-imports` checks the imports.
"""
