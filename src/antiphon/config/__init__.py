"""The settings: names, types, defaults, descriptions, and rules between them.

Each section is a frozen value in the module of its subject. The code that a section concerns takes this value: nothing
copies its fields. `section.py` is what a section is (a pydantic model), `problems.py` says what is wrong. `settings.py`
is the root with all sections, `sources.py` reads files, variables and flags; these two are for the composition root and
the commands alone.
"""
