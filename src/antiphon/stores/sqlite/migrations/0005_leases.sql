-- Leases are judged by the machine's own clock (stores/lease_clock.py), which begins anew with every start of the machine:
-- `boot` is the one that the times of leases are of. No row: none yet, so all leases are over.
CREATE TABLE lease_clock (boot TEXT NOT NULL);

-- `claim` counts the claims of a job, and never goes back (`attempts` does, when a job is given back); an event has that
-- of the attempt which wrote it. 0: written when the response was queued, true of every attempt.
ALTER TABLE jobs ADD COLUMN claim INTEGER NOT NULL DEFAULT 0;
ALTER TABLE response_events ADD COLUMN claim INTEGER NOT NULL DEFAULT 0;
