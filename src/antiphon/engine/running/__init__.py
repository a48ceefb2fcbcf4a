"""The async part of the engine: performs an exchange's actions and runs background work."""
