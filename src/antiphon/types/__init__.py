"""Data types of both APIs: Responses (items, request, response, events) and Chat Completions. The package translates
nothing."""
