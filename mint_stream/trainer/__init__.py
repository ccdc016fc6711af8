"""Training: datasets, losses, optimizer state, checkpoints, and the pass that many jobs share."""
