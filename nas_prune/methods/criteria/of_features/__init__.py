"""Criteria that look at what units say of images."""
