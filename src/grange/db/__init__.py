"""The journal on a database: plain SQL in named files, one transaction for many requests."""
