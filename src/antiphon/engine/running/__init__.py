"""Contains the engine's asynchronous code, which performs an exchange's actions and runs background work."""
