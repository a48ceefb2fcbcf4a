"""Implements the PostgreSQL backend (15 or newer): state that many machines share.

Lives here: the SQL of this backend, and the driver (asyncpg). Not here: the meaning of the ports (`engine/ports/`), the
code that the backends share (the modules of `stores/`).

Invariant: the statement that needs a lease, an expiry or a turn checks it by the database's clock. A transaction locks
a row that others depend on before it reads it, and reads it again after the lock.
"""
