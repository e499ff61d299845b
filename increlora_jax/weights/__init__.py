"""Weights of models: reading and writing folders, and downloads from the hub."""
