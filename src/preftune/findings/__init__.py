"""Defects of preference data that a reader would notice, each with the lines where it occurs."""
