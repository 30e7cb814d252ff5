"""Criteria that look at the loss: what it changes by without a unit, or without the weights that write it."""
