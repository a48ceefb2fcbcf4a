"""Writes logs, metrics and traces. The runner, the servers and the commands import it; pure code never does."""
