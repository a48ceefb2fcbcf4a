"""The console in a real browser (`scripts/lab console`)."""
