"""Logs and metrics; imported by the runner, the doors and the commands, never by pure code."""
