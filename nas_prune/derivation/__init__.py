"""From a model and an architecture to a smaller model, with proof."""
