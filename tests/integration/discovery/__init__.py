"""Service discovery against real registries."""
