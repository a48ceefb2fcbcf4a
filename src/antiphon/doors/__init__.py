"""The doors: where requests come in and responses go out. All of them open onto one core."""
