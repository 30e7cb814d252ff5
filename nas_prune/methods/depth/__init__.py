"""What of a network's depth can go: its blocks, how alike their features are, and where it falls into segments."""
