"""The pull side of the OCI distribution specification over the images of a farm."""
