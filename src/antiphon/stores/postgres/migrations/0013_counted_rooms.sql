-- serves: 4
-- An owner's bytes also count conversations, prompts and prompt versions: their contents, and 256 bytes for each row.
-- Before, a client could store metadata and prompts without limit.
CREATE FUNCTION conversations_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(owner), array_agg((256 + length(metadata))::bigint)) FROM added;
  RETURN NULL;
END $$;
CREATE FUNCTION conversations_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(owner), array_agg(-(256 + length(metadata))::bigint)) FROM removed;
  RETURN NULL;
END $$;
-- Each turn updates its conversation's row. So the next trigger runs only for its columns, and for each row.
CREATE FUNCTION conversations_recounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(
    ARRAY[OLD.owner, NEW.owner], ARRAY[-(256 + length(OLD.metadata)), 256 + length(NEW.metadata)]::bigint[]
  );
  RETURN NULL;
END $$;
CREATE TRIGGER conversations_counted AFTER INSERT ON conversations REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION conversations_counted();
CREATE TRIGGER conversations_uncounted AFTER DELETE ON conversations REFERENCING OLD TABLE AS removed
  FOR EACH STATEMENT EXECUTE FUNCTION conversations_uncounted();
CREATE TRIGGER conversations_recounted AFTER UPDATE OF owner, metadata ON conversations
  FOR EACH ROW EXECUTE FUNCTION conversations_recounted();

CREATE FUNCTION prompt_bytes(prompt prompts) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT 256 + length(prompt.metadata) + coalesce(octet_length(prompt.name), 0)
$$;
CREATE FUNCTION version_bytes(prompt prompts) RETURNS bigint LANGUAGE sql STABLE AS $$
  SELECT coalesce(sum(256 + length(body)), 0)::bigint FROM prompt_versions WHERE prompt_id = prompt.id
$$;
CREATE FUNCTION prompts_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(ARRAY[NEW.owner], ARRAY[prompt_bytes(NEW)]);
  RETURN NULL;
END $$;
CREATE FUNCTION prompts_recounted() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE versions bigint := 0;
BEGIN
  IF OLD.owner <> NEW.owner THEN
    versions := version_bytes(NEW);
  END IF;
  PERFORM count_bytes(
    ARRAY[OLD.owner, NEW.owner], ARRAY[-prompt_bytes(OLD) - versions, prompt_bytes(NEW) + versions]
  );
  RETURN NULL;
END $$;
-- The deletion of a prompt also deletes its versions, so this trigger counts them before.
CREATE FUNCTION prompts_uncounted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(ARRAY[OLD.owner], ARRAY[-prompt_bytes(OLD) - version_bytes(OLD)]);
  RETURN OLD;
END $$;
-- No statement changes a version, and none deletes a version without its prompt.
CREATE FUNCTION prompt_versions_counted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  PERFORM count_bytes(array_agg(p.owner), array_agg((256 + length(n.body))::bigint))
  FROM added n JOIN prompts p ON p.id = n.prompt_id;
  RETURN NULL;
END $$;
CREATE TRIGGER prompts_counted AFTER INSERT ON prompts FOR EACH ROW EXECUTE FUNCTION prompts_counted();
CREATE TRIGGER prompts_recounted AFTER UPDATE OF owner, name, metadata ON prompts
  FOR EACH ROW EXECUTE FUNCTION prompts_recounted();
CREATE TRIGGER prompts_uncounted BEFORE DELETE ON prompts FOR EACH ROW EXECUTE FUNCTION prompts_uncounted();
CREATE TRIGGER prompt_versions_counted AFTER INSERT ON prompt_versions REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION prompt_versions_counted();

SELECT count_bytes(array_agg(owner), array_agg(size)) FROM (
  SELECT owner, (256 + length(metadata))::bigint AS size FROM conversations
  UNION ALL
  SELECT owner, prompt_bytes(p) + version_bytes(p) FROM prompts p
) AS counted;
