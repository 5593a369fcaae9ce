"""The agent protocol: Hydra's runner.v1 with Grange's extension. Only this room sees protobuf."""
