"""Contains the commands of `antiphon`. Each command is a function in one module of this package. `antiphon/entry.py`
imports only the module of the command that runs."""
