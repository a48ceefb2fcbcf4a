"""The Helm chart and the plain manifests made from it, without a cluster (`scripts/lab kubernetes` has one)."""
