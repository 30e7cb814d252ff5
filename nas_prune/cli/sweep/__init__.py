"""``nas-prune sweep``: W&B's sweep files checked, shown, and run without a server."""
