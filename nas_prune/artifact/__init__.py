"""Artefacts: derived models as files that just load."""
