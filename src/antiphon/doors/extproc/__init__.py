"""Contains the ext_proc server: an external processor for Envoy over gRPC."""
