"""Source: what eager code says about sizes, and how it is rewritten where a number must become an attribute or -1."""
