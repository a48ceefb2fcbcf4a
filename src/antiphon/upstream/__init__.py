"""Outgoing calls: model and embeddings requests, and files that clients name by URL."""
