"""Contains the commands of `antiphon`: one module or package each."""
