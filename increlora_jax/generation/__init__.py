"""Generation of text from a model's token scores."""
