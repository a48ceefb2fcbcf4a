"""Translation between the Responses API and Chat Completions, as pure functions of bytes and values. The package
performs no I/O."""
