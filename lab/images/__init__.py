"""`scripts/lab images`: the image and the compose files on a Docker engine."""
