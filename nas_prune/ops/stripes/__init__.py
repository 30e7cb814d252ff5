"""Convolutions of stripes, in the forms that run fastest."""
