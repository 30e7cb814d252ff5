"""The operators of a graph, timed alone."""
