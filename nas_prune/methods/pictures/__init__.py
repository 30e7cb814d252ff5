"""What units look for: the pictures that excite them most, which of these are alike, who takes over whom."""
