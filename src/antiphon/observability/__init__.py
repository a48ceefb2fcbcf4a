"""Writes logs, metrics and traces. Packages with I/O, such as `engine` and `commands`, import this package. Modules
without I/O, such as those of `translation`, never import this package."""
