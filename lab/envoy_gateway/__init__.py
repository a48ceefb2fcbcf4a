"""Tests Antiphon with Envoy Gateway on a real cluster; see `run.py`."""
