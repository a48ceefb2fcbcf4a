"""Reads and checks the client's request; an error says what to change."""
