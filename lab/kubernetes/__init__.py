"""`scripts/lab kubernetes`: tests the Helm chart on a real cluster. pytest does not run this program, because it needs
a cluster."""
