"""Closed forms: what the best policy is, wherever it can be known."""
