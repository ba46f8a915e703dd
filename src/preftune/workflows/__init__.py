"""Commands that are not one training run: sample, pairs, score, frontier, winrate, iterate, data check and noise."""
