"""Logs, metrics and traces; imported by the runner, the doors and the commands, never by pure code."""
