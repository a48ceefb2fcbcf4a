"""Defines the data types of both APIs: Responses (items, request, response, events) and Chat Completions. This package
does not translate between the two APIs."""
