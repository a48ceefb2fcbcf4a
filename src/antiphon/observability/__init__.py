"""Logs, metrics and traces. The runner, the doors and the commands import it; pure code never does."""
