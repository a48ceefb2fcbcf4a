-- What a build that does not know a step must know of it: its name, and the oldest schema whose builds can serve with it
-- (schema_steps.py). Null: only builds that know the step.
ALTER TABLE schema_migrations ADD COLUMN name TEXT;
ALTER TABLE schema_migrations ADD COLUMN serves INTEGER;
