"""Pages about runs: figures and the self-contained HTML that holds them."""
