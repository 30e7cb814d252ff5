"""The parts of ``benchmarks/glyphs.py``: which characters, which faces, and how a glyph becomes a bad scan."""
