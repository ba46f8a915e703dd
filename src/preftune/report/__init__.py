"""HTML reports: figures, and self-contained pages that show them."""
