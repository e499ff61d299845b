"""The algorithm as Flax NNX layers, and the way into anybody's model."""
