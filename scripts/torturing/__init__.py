"""Break preftune on purpose, and compare the result with an undisturbed one. scripts/torture is the command."""
