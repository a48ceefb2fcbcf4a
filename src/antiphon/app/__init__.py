"""The composition root: reads all settings and chooses the implementation of each port.

`build.py` composes one serving process. Beside it lie its parts: `keys.py` (keys), `endpoints.py` (which API endpoints
are served), `model_routing.py` (which upstream serves a model), `outgoing.py` and `trust.py` (calls to others and their
certificates), `tools.py` and `extensions.py` (hosted tools, those of other packages), `vector_stores.py` (search) and
`measuring.py` (metrics and traces).
"""
