-- serves: 12
-- Of a response that has claimed calls of tools: what is stored of it should its process die while they run.
ALTER TABLE idempotency ADD COLUMN record BLOB;
