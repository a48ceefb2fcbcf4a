"""Contains the ports (`ports/`), the exchange, which does no I/O (`exchange/`), and the code that runs an exchange
(`running/`)."""
