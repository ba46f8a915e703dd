"""Commands that are not training runs: sample, build pairs, score, compare, iterate, find wrong labels."""
