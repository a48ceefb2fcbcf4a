"""Makes the Chat Completions request: items, tools and options become the body for the upstream."""
