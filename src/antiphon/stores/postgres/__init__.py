"""The PostgreSQL backend (15 or newer): state that many machines share.

Lives here: the SQL of this backend, and the driver (asyncpg). Not here: what the ports mean (`engine/ports/`), what
the backends share (the modules of `stores/`).

Invariant: every lease, expiry and turn is judged by the database's clock, inside the statement that does so; a row
that others depend on is locked before it is looked at, and looked at anew behind the lock.
"""
