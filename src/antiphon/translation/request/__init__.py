"""Reads and checks the client's request. Each error says what the client must change."""
