"""Read rows from files: JSON, JSON Lines, CSV, Parquet, Arrow, compressed files, folders with splits, and the Hub."""
