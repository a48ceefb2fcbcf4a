-- New stores take their numbers from `file_numbers` too: no number that was ever given out is given out again.
UPDATE file_numbers SET last = max(last, ifnull((SELECT max(no) FROM vector_stores), 0));
