"""The HTTP API: the farm's state and orders as JSON. docs/http-api.md lists the calls."""
