"""Makes outgoing calls: model and embeddings requests, and downloads of files that clients name by URL."""
