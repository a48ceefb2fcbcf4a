-- What the model was shown of an item beyond what the item says: for later requests, never for clients.
ALTER TABLE response_items ADD COLUMN shown BLOB;
ALTER TABLE conversation_items ADD COLUMN shown BLOB;

-- It takes room like the body beside it.
DROP TRIGGER conversation_items_counted;
DROP TRIGGER conversation_items_uncounted;
CREATE TRIGGER conversation_items_counted AFTER INSERT ON conversation_items BEGIN
  UPDATE conversations SET bytes = bytes + length(NEW.body) + ifnull(length(NEW.shown), 0)
  WHERE owner = NEW.owner AND id = NEW.conversation_id;
  INSERT INTO owner_bytes (owner, bytes) VALUES (NEW.owner, length(NEW.body) + ifnull(length(NEW.shown), 0))
  ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER conversation_items_uncounted AFTER DELETE ON conversation_items BEGIN
  UPDATE conversations SET bytes = bytes - length(OLD.body) - ifnull(length(OLD.shown), 0)
  WHERE owner = OLD.owner AND id = OLD.conversation_id;
  UPDATE owner_bytes SET bytes = bytes - length(OLD.body) - ifnull(length(OLD.shown), 0) WHERE owner = OLD.owner;
  DELETE FROM owner_bytes WHERE owner = OLD.owner AND bytes <= 0;
END;
