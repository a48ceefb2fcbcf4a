"""Tests the dashboard and the alert rules of deployments/monitoring with a real Prometheus."""
