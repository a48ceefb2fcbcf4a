"""Contains programs that measure Antiphon, break it and try it with real clients and servers; `scripts/lab` runs them.

Lives here: a folder for each program. Not here: tests (`tests/`, those of these programs in `tests/lab`), code that
tests and programs share (`tests/support`).

Invariant: programs import `tests.support` and `antiphon`. No test imports a program, except those of `tests/lab` and a
few long ones (`tests/lab/test_imports.py`).
"""
