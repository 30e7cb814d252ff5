"""A model as one graph of operators: brought in, exported, captured."""
