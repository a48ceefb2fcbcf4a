"""`antiphon doctor`: probes of the installation and of the upstreams, and the report about them."""
