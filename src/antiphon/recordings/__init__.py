"""Recorded exchanges with chat servers: the file format, the recorder and the replayer.

Lives here: the format of an entry (`format.py`), files of entries (`file.py`), and the removal of secrets
(`scrubbing.py`). The package also chooses an answer for a request (`matching.py`), and has two HTTP servers
(`servers.py`). Not here: the commands `record` and `replay` (`commands/`), the recordings of the tests
(`tests/recordings`).

Invariant: only the commands import the two servers. `format.py` is pure, so any package may write entries with it.
"""
