"""`scripts/lab reload`: settings change again and again under load, and no client may notice."""
