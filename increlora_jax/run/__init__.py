"""Runs built from a configuration."""
