"""The settings: names, types, defaults, descriptions, and rules between them.

Each section is a frozen value in a module by what it is about, and the value that whoever it is about takes: nothing
copies its fields. `section.py` is what a section is (a pydantic model), `problems.py` says what is wrong. `settings.py`
is the root with all sections, `sources.py` reads files, variables and flags; these two are for the composition root and
the commands alone.
"""
