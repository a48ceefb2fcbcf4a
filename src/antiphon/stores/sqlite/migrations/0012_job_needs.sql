-- serves: 11
-- What a process must be able to, to run the job: a JSON array of words.
ALTER TABLE jobs ADD COLUMN needs TEXT NOT NULL DEFAULT '[]';
