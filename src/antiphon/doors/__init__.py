"""Contains the two servers of the sidecar: the ext_proc server and the HTTP server. Both servers use the same router
and the same engine."""
