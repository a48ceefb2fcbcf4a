"""The console: a website that shows operators and owners what the gateway does.

Not here: the listeners that serve the console (`doors/http/`), and the journal that the console reads
(`stores/journal.py`).
"""
