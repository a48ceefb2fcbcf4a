"""Pure translation between Responses and Chat Completions: bytes and values in, bytes and values out."""
