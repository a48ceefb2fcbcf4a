"""Builds the objects of each serving process from the settings.

`build.py` builds the whole process. The other modules of this package build its components. `keys.py` finds keys,
`endpoints.py` chooses the API endpoints, and `upstreams.py` chooses the upstream of each model. `upstreams.py` and
`trust.py` build the clients that call other servers. `owners.py` builds quotas and the check of tokens, and
`console.py` builds the console and its journal. `tools.py` and `extensions.py` build hosted tools, also those of other
packages. `vector_stores.py` builds the search in vector stores. `measuring.py` collects metrics and opens the tracer.
"""
