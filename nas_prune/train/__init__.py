"""Training: the loop, the search, the choice, fine-tuning."""
