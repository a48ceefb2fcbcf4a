"""Vector stores on SQLite: SQL, chunks, and search by words and by vectors.

Lives here: what only vector stores need. Not here: the store that users see (`stores/vector_stores.py`), connections
and the schema (`stores/sqlite/database.py`, `stores/sqlite/migrate.py`).
"""
