"""Implements `antiphon admin`: operations on stored data."""
