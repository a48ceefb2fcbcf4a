"""The console: a website that shows operators and owners what the gateway does.

`doors/http/` has the listeners that serve the console. `stores/journal.py` stores the journal, the list of requests
that the console shows.
"""
