"""Every path of ours except `POST /v1/responses`, over the ports and without a server."""
