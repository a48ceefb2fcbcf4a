"""`scripts/lab kubernetes`: tests the Helm chart on a real cluster. pytest does not run it, because it needs a
cluster."""
