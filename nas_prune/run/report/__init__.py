"""The report: a page, its curves and its tables."""
