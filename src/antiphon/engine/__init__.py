"""The engine: what it needs of the world (`ports/`), the pure exchange (`exchange/`), what performs it (`running/`)."""
