"""The views of the console, one module for each entry of the navigation."""
