"""Criteria that look at weights alone."""
