"""Files: written whole, read through one validated reader per format."""
