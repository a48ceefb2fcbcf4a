"""The engine: its ports (`ports/`), the pure exchange (`exchange/`), and the code that performs it (`running/`)."""
