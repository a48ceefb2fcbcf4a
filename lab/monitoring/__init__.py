"""The files of deployments/monitoring, read and tried out."""
