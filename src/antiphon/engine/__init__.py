"""The engine: the pure exchange, the runner that performs its actions, and the ports it needs."""
