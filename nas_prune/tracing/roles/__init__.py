"""Who writes an axis, who reads it, who scales it, and where it comes out."""
