"""The training loop and what it stands on: optimizer, checkpoints, metrics, run folder, display."""
