"""Weights from folders, files and the hub."""
