-- serves: 21
-- An owner's bytes also count conversations, prompts and prompt versions: their contents, and 256 bytes for each row.
-- Before, a client could store metadata and prompts without limit. An older build rejects triggers that it does not
-- know.
CREATE TRIGGER conversations_counted AFTER INSERT ON conversations BEGIN
  INSERT INTO owner_bytes (owner, bytes) VALUES (NEW.owner, 256 + length(NEW.metadata))
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER conversations_recounted AFTER UPDATE OF owner, metadata ON conversations BEGIN
  UPDATE owner_bytes SET bytes = bytes - 256 - length(OLD.metadata) WHERE owner = OLD.owner;
  INSERT INTO owner_bytes (owner, bytes) VALUES (NEW.owner, 256 + length(NEW.metadata))
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
CREATE TRIGGER conversations_uncounted AFTER DELETE ON conversations BEGIN
  UPDATE owner_bytes SET bytes = bytes - 256 - length(OLD.metadata) WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;

CREATE TRIGGER prompts_counted AFTER INSERT ON prompts BEGIN
  INSERT INTO owner_bytes (owner, bytes)
  VALUES (NEW.owner, 256 + length(NEW.metadata) + ifnull(length(CAST(NEW.name AS BLOB)), 0))
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER prompts_recounted AFTER UPDATE OF name, metadata ON prompts BEGIN
  UPDATE owner_bytes
  SET bytes = bytes + length(NEW.metadata) + ifnull(length(CAST(NEW.name AS BLOB)), 0)
    - length(OLD.metadata) - ifnull(length(CAST(OLD.name AS BLOB)), 0)
  WHERE owner = NEW.owner;
END;
CREATE TRIGGER prompts_moved AFTER UPDATE OF owner ON prompts WHEN OLD.owner <> NEW.owner BEGIN
  INSERT INTO owner_bytes (owner, bytes)
  SELECT NEW.owner, 256 + length(NEW.metadata) + ifnull(length(CAST(NEW.name AS BLOB)), 0)
    + (SELECT ifnull(sum(256 + length(body)), 0) FROM prompt_versions WHERE prompt_id = NEW.id)
  WHERE true
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
  UPDATE owner_bytes
  SET bytes = bytes - 256 - length(OLD.metadata) - ifnull(length(CAST(OLD.name AS BLOB)), 0)
    - (SELECT ifnull(sum(256 + length(body)), 0) FROM prompt_versions WHERE prompt_id = OLD.id)
  WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
-- The deletion of a prompt also deletes its versions, so this trigger counts them before.
CREATE TRIGGER prompts_uncounted BEFORE DELETE ON prompts BEGIN
  UPDATE owner_bytes
  SET bytes = bytes - 256 - length(OLD.metadata) - ifnull(length(CAST(OLD.name AS BLOB)), 0)
    - (SELECT ifnull(sum(256 + length(body)), 0) FROM prompt_versions WHERE prompt_id = OLD.id)
  WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
-- No statement changes a version, and none deletes a version without its prompt.
CREATE TRIGGER prompt_versions_counted AFTER INSERT ON prompt_versions BEGIN
  INSERT INTO owner_bytes (owner, bytes)
  SELECT owner, 256 + length(NEW.body) FROM prompts WHERE id = NEW.prompt_id
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;

INSERT INTO owner_bytes (owner, bytes)
SELECT owner, sum(size) FROM (
  SELECT owner, 256 + length(metadata) AS size FROM conversations
  UNION ALL
  SELECT owner, 256 + length(metadata) + ifnull(length(CAST(name AS BLOB)), 0) FROM prompts
  UNION ALL
  SELECT p.owner, 256 + length(v.body) FROM prompts p JOIN prompt_versions v ON v.prompt_id = p.id
) WHERE true GROUP BY owner
ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
