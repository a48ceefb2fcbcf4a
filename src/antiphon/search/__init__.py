"""Document ingestion and search for vector stores.

Lives here: reading documents (`extract.py`, in a process of its own: `reader_process.py`, `readers.py`), cutting them
(`chunking.py`), the worker that ingests them (`ingest.py`), and searching (`searcher.py`). Not here: SQL (`stores/`),
the embeddings server's HTTP (`upstream/embeddings.py`), the endpoints (`api/vector_stores.py`).
"""
