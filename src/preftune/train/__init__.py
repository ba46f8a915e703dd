"""The training loop, optimizer, checkpoints, metrics, run folder and progress display."""
