"""The Python functions of `import preftune`: the commands, with data, models and functions in memory."""
