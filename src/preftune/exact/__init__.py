"""Closed forms: the optimal policy, for problems small enough to compute it exactly."""
