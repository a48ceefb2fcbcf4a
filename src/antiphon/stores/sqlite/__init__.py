"""State in SQLite files in the data folder: everything that knows it, from SQL to threads."""
