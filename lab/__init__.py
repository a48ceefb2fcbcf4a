"""Contains programs that measure Antiphon, inject faults, and test it with real clients and servers; `scripts/lab` runs
them.

Lives here: a folder for each program. Not here: tests (`tests/`; those of these programs are in `tests/lab`), code that
tests and programs share (`tests/support`).

Invariant: programs may import `tests.support` and `antiphon`. No test imports a program, except those of `tests/lab`
and a few long ones (`tests/lab/test_imports.py`).
"""
