"""Tasks: reading of data, padded batches, losses and metrics."""
