"""The commands of `antiphon`, one file each."""
