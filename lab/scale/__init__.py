"""`scripts/lab scale`: runs replicas on one state, kills, pauses or disconnects them, and checks what must still
hold."""
