"""`scripts/lab scale`: replicas on one state, and what must hold whichever replica is asked, killed, frozen or cut
off."""
