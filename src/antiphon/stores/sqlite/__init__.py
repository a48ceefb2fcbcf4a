"""Implements the SQLite backend: state in files of the data folder."""
