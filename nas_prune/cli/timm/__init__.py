"""``nas-prune timm``: timm's scripts for derived models."""
