"""The views of the console: the pages below each entry of the navigation."""
