"""Outgoing model calls: the one HTTP session and the chat client on it."""
