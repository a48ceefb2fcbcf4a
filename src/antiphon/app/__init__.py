"""The composition root: the only place that reads the settings and decides who implements which port."""
