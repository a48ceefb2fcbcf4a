"""Implements the SQLite backend, which stores all state in files of the data folder."""
