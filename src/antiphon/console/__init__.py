"""The console: a website on which operators and owners look into the gateway.

Not here: the listeners that serve it (`doors/http/`), the journal that it reads (`stores/journal.py`).
"""
