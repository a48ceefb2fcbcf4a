"""Ingests documents and searches vector stores.

Lives here: extracting text (`extract.py`) in a separate process (`reader_process.py`, `readers.py`), splitting text
into chunks (`chunking.py`), the ingestion worker (`ingest.py`), and searching (`searcher.py`). Not here: the SQL
statements (`stores/`), the client of the embeddings server (`upstream/embeddings.py`), the endpoints
(`api/vector_stores.py`).
"""
