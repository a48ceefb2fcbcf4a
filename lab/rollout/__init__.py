"""`scripts/lab rollout`: replicas are restarted one after the other under load, and no client may notice."""
