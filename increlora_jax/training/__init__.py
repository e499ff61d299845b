"""State, step and loop of a run; methods are known by their protocol alone."""
