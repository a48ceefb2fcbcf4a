"""Programs that measure Antiphon, break it and try it with what is real; `scripts/lab` runs them.

Lives here: a folder for each program. Not here: tests (`tests/`, those of these programs in `tests/lab`), and what
tests and programs share (`tests/support`).

Invariant: programs import `tests.support` and `antiphon`; no test imports a program but those of `tests/lab` and a few
long ones (`tests/lab/test_imports.py`).
"""
