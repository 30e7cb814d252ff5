"""``nas-prune doctor``: what of a model can shrink."""
