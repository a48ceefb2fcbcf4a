"""Its types."""
