"""Tasks: what is trained and judged, from the files or the hub to padded batches and metrics."""
