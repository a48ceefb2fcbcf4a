"""Implements vector stores on PostgreSQL: SQL, chunks, and search by words and by vectors.

Lives here: the parts that only vector stores need. Not here: the API's view (`stores/vector_stores.py`), connections
and the schema (`stores/postgres/database.py`, `stores/postgres/migrate.py`).
"""
