"""How fast and how large the farm is, against the rivals that a user would otherwise run."""
