"""The algorithm on plain arrays: no Flax, no I/O."""
