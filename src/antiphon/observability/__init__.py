"""Writes logs, metrics and traces. The runner, the servers and the commands import this package. Modules without I/O,
such as those of `translation`, never import this package."""
