"""Talk to a model in the terminal, or to two models side by side."""
