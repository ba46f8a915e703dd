"""People as judges: the pairs that they compare, their verdicts on disk, and the page on which they judge."""
