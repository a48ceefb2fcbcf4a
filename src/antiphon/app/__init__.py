"""Composes the processes: reads all settings and selects the implementation of each port.

`build.py` composes one serving process. The other modules build its parts. `keys.py` resolves keys, `endpoints.py`
chooses the API endpoints, and `upstreams.py` the upstream of a model. `upstreams.py` and `trust.py` build the clients
of other servers. `owners.py` builds quotas and the check of tokens, and `console.py` the console and its journal.
`tools.py` and `extensions.py` build hosted tools, also those of other packages. `vector_stores.py` builds search, and
`measuring.py` collects metrics and opens the tracer.
"""
