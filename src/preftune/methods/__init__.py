"""Training methods as recipes: what is put together, in which order, and what is refused before the first step."""
