"""Record: what training tells while it runs: the journal and Weights & Biases, bars, rows of journals."""
