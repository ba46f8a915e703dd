"""Read and tokenise preference data, put it in training order, and arrange it in batches."""
