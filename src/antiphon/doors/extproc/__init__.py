"""The Envoy door: an external processor (ext_proc) over gRPC."""
