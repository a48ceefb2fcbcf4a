"""Contains the commands of `antiphon`. Each command is a function in one module of this package. `antiphon/entry.py`
imports that module when the command runs."""
