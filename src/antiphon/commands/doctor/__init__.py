"""Implements `antiphon doctor`: checks the installation and probes the upstreams."""
