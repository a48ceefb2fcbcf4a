"""Reading the client's request: its body is checked, or refused with an error that says what to change."""
