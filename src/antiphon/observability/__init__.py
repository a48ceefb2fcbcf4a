"""Writes logs, metrics and traces. The runner, the servers and the commands import this package; code without IO never
imports it."""
