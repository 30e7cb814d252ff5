"""Methods: gates, criteria, selectors and penalties, and the model that carries them."""
