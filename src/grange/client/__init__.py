"""The typed client of the farm's HTTP API, and the shapes that API speaks."""
