"""The processes of `antiphon up`: Envoy and the workers are started, watched, replaced and drained."""
