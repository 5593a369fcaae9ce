"""Container images: their names, layers, bytes and manifests, as pure functions of packages."""
