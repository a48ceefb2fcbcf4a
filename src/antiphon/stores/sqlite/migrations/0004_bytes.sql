-- Bytes beside items: what a history is made of, and what an owner takes, known before any of it is read.

-- The bodies of the items of the whole chain up to and including this response, as `history_items` counts them.
ALTER TABLE responses ADD COLUMN history_bytes BIGINT NOT NULL DEFAULT 0;
-- The response's body and its own items.
ALTER TABLE responses ADD COLUMN own_bytes BIGINT NOT NULL DEFAULT 0;
-- The bodies of a conversation's items.
ALTER TABLE conversations ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;

-- The bodies of an owner's responses, their items, and the items of conversations; no row: nothing.
CREATE TABLE owner_bytes (
  owner TEXT NOT NULL PRIMARY KEY,
  bytes BIGINT NOT NULL
) WITHOUT ROWID;

UPDATE responses SET own_bytes = length(body) + (
  SELECT ifnull(sum(length(i.body)), 0) FROM response_items i WHERE i.response_id = responses.id
);
WITH RECURSIVE turn (id, chain_id, total) AS (
  SELECT r.id, r.chain_id, r.own_bytes - length(r.body) FROM responses r WHERE r.prev_id IS NULL
  UNION ALL
  SELECT r.id, r.chain_id, turn.total + r.own_bytes - length(r.body)
  FROM turn CROSS JOIN responses r ON r.chain_id = turn.chain_id AND r.prev_id = turn.id
)
UPDATE responses SET history_bytes = turn.total FROM turn WHERE turn.id = responses.id;
UPDATE conversations SET bytes = (
  SELECT ifnull(sum(length(i.body)), 0) FROM conversation_items i
  WHERE i.owner = conversations.owner AND i.conversation_id = conversations.id
);
INSERT INTO owner_bytes (owner, bytes)
SELECT owner, sum(bytes) FROM (
  SELECT owner, own_bytes AS bytes FROM responses UNION ALL SELECT owner, bytes FROM conversations
) GROUP BY owner HAVING sum(bytes) > 0;

-- Rows go in many ways (one by one, with their chain or conversation, by age, by an operator), so the database counts.
CREATE TRIGGER responses_counted AFTER INSERT ON responses BEGIN
  INSERT INTO owner_bytes (owner, bytes) VALUES (NEW.owner, NEW.own_bytes)
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER responses_recounted AFTER UPDATE OF own_bytes ON responses BEGIN
  UPDATE owner_bytes SET bytes = bytes + NEW.own_bytes - OLD.own_bytes WHERE owner = NEW.owner;
END;
CREATE TRIGGER responses_uncounted AFTER DELETE ON responses BEGIN
  UPDATE owner_bytes SET bytes = bytes - OLD.own_bytes WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
CREATE TRIGGER conversation_items_counted AFTER INSERT ON conversation_items BEGIN
  UPDATE conversations SET bytes = bytes + length(NEW.body) WHERE owner = NEW.owner AND id = NEW.conversation_id;
  INSERT INTO owner_bytes (owner, bytes) VALUES (NEW.owner, length(NEW.body))
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER conversation_items_uncounted AFTER DELETE ON conversation_items BEGIN
  UPDATE conversations SET bytes = bytes - length(OLD.body) WHERE owner = OLD.owner AND id = OLD.conversation_id;
  UPDATE owner_bytes SET bytes = bytes - length(OLD.body) WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
