"""Implements vector stores on PostgreSQL: the ingestion of files as chunks, and search by words and by vectors.

Lives here: the modules that only vector stores need. Not here: the operations of the API (`stores/vector_stores.py`),
connections (`stores/postgres/database.py`), the schema (`stores/postgres/migrate.py`).
"""
