"""A page of charts as one HTML file, or as PNG files; it knows numbers and words, not runs."""
