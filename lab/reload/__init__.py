"""`scripts/lab reload`: changes the settings repeatedly under load, and checks that no client notices."""
