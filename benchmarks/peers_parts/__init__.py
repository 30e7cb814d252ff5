"""What `benchmarks/peers.py` is made of: cells, the task that every method is given, the methods, and the table."""
