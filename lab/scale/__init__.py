"""`scripts/lab scale`: replicas on one state, and what must hold whoever is asked, killed, frozen or cut off."""
