"""The doors: the ext_proc server and the HTTP server. Both run the same core."""
