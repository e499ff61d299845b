"""One protocol, one file a method."""
