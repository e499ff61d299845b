"""Files of others, read without trust; our own, replaced whole or not at all."""
