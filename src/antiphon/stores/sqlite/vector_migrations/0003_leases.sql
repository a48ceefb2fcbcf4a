-- Leases are judged by the machine's own clock (stores/lease_clock.py), which begins anew with every start of the machine:
-- `boot` is the one that the times of leases are of. No row: none yet, so all leases are over.
CREATE TABLE lease_clock (boot TEXT NOT NULL) STRICT;
