"""Movers that decide by images which weights are not trained on."""
