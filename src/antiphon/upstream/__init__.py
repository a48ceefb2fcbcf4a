"""Outgoing calls: models and embeddings over connections of their own, files that clients name by URL."""
