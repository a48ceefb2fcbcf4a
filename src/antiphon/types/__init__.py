"""Shapes of both APIs: Responses (items, request, response, events) and Chat Completions. Data only."""
