"""Supervises the processes of `antiphon up`: starts, watches, replaces and drains Envoy and the workers."""
