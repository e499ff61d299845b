"""A run from its configuration."""
