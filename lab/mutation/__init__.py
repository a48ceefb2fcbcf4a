"""Implements mutation testing; see `run.py`."""
