"""``nas-prune coverage``: the product, tried on all of timm."""
