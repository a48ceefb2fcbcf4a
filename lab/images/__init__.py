"""`scripts/lab images`: tests the container image and the compose files on a Docker engine."""
