"""Contains the commands of `antiphon`: each is a function of a module here, which `antiphon/entry.py` imports when the
command runs."""
