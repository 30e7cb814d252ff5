"""Record: what training leaves and tells while it runs: checkpoints, the journal and Weights & Biases, bars."""
