"""Recorded exchanges with chat servers: the file format, the recorder and the replayer.

A recording is a file of entries, one for each recorded exchange. `format.py` defines an entry, `file.py` reads and
writes the files, and `scrubbing.py` removes secrets from an exchange. `matching.py` chooses the recorded answer for a
request, and `servers.py` has the recorder and the replayer. The package `commands` has the commands `record` and
`replay`, and `tests/recordings` has the recordings of the tests.

Invariant: only the commands import the recorder and the replayer. `format.py` does no I/O, so any package may import
it.
"""
