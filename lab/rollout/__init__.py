"""`scripts/lab rollout`: restarts replicas one after the other under load, and checks that no client notices."""
