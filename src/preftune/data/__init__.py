"""Groups of token ids, the order in which they are trained on, and the batches they are laid out in."""
