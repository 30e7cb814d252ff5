"""A run: its folder, and its steps from a recipe to a report."""
