"""Defines the settings: their names, types, defaults and descriptions, and the rules between settings.

Each section is a frozen pydantic model in the module of its subject. Code that needs settings receives the whole
section object, and does not copy single fields. `section.py` defines the base class of sections, and `problems.py`
formats errors. `settings.py` defines the root with all sections, and `sources.py` reads files, variables and flags.
Only the composition root (`app/`) and the commands import `settings.py` and `sources.py`.
"""
