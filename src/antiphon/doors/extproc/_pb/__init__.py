"""Contains the protobuf classes that `scripts/lab protos` generates from `protos/`. Do not edit the classes. Only
`wire.py` and `standard_services.py` import them."""
