"""Rows to groups of text: which columns a row has, what they mean, and an account of every row."""
