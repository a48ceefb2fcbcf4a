"""Composes the processes: reads all settings and selects the implementation of each port.

`build.py` composes one serving process. The other modules build its parts. `keys.py` resolves keys, `endpoints.py`
chooses the API endpoints, and `model_routing.py` the upstream of a model. `outgoing.py` and `trust.py` build the
clients of other servers. `tools.py` and `extensions.py` build hosted tools, also those of other packages.
`vector_stores.py` builds search, and `measuring.py` collects metrics and opens the tracer.
"""
