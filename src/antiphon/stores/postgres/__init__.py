"""Implements the backend for PostgreSQL 15 or newer, in which many machines can share state.

Lives here: the SQL of this backend, and all use of the driver (asyncpg). Not here: the definitions of the ports
(`engine/ports/`), the code that the backends share (the modules of `stores/`).

Invariant: a statement that depends on a lease or an expiry time compares it with the database's clock. A transaction
locks a row before it makes decisions from the row's values, and reads the row again after the lock.
"""
