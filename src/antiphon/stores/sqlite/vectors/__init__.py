"""Implements vector stores on SQLite: their SQL, chunks, full-text search and vector search.

Lives here: the SQLite code that only vector stores need. Not here: the operations of the API
(`stores/vector_stores.py`), connections and the schema (`stores/sqlite/database.py`, `stores/sqlite/migrate.py`).
"""
