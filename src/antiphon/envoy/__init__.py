"""Envoy's configuration, made from the settings: one source for `up`, compose and existing Envoys."""
