"""Networks of searched cells: DARTS, NAS-Bench-201, or a space of one's own. The supernet is a timm model too.

``timm.create_model("nas_prune_cells", space="darts")``; see ``artifact/cells_entry.py``.
"""
