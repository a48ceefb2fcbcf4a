"""The composition root: reads all settings and chooses the implementation of each port."""
