"""Translation between the Responses API and Chat Completions, as pure functions of bytes and values. It performs no
I/O."""
