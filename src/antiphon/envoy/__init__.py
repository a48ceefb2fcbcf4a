"""Generates Envoy's configuration from the settings, for `up`, compose files and existing Envoys."""
