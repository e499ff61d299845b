"""Texts drawn from a model's scores of tokens."""
