"""The functions that `import preftune` offers: the commands, with data, models and functions in memory."""
