"""The composition root: it reads all settings, and it alone decides who implements which port."""
