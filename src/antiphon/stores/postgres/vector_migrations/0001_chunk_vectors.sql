-- serves: 1
-- The vectors of chunks, in a table of their own: it needs the extension `vector`, and comparing many reads no texts.
-- store_number and width (numbers in the vector) are here for the indexes: each large store has one of its own
-- (vector_indexes.py).
CREATE TABLE chunk_vectors (
  file_number bigint NOT NULL,
  place integer NOT NULL,
  store_number bigint NOT NULL,
  width integer NOT NULL,
  vector halfvec NOT NULL,
  PRIMARY KEY (file_number, place),
  FOREIGN KEY (file_number, place) REFERENCES chunks (file_number, place) ON DELETE CASCADE
) WITH (toast_tuple_target = 8160);
-- Vectors do not shrink, and are read where the row is.
ALTER TABLE chunk_vectors ALTER vector SET STORAGE EXTERNAL;
