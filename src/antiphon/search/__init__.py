"""Vector stores: from uploaded files to answers with their sources.

Lives here: reading documents (`extract*`, in a process of its own: `reader_process`, `readers`), cutting them
(`tokens`, `chunking`), the worker that ingests them (`ingest`), and searching (`ranking`, `searcher`). Not
here: SQL (`stores/`), the embeddings server's HTTP (`upstream/embeddings.py`), the endpoints (`api/vector_stores.py`).
"""
