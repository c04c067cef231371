"""Models on disk: manifests, the store, pulls, the catalogue."""
