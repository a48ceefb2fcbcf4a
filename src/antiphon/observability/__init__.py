"""Writes logs, metrics and traces. The runner, the servers and the commands import this package. Code without I/O never
imports this package."""
