"""Measurements as pure functions: win rates, reward against KL, drift, RewardBench, label noise."""
