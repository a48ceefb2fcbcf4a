"""Ingests documents and searches vector stores.

Lives here: reading documents (`extract.py`, in a separate process: `reader_process.py`, `readers.py`), splitting them
(`chunking.py`), the ingestion worker (`ingest.py`), and searching (`searcher.py`). Not here: SQL (`stores/`), the
embeddings server's HTTP API (`upstream/embeddings.py`), the endpoints (`api/vector_stores.py`).
"""
