"""Parse rows into groups of text: recognise the format, read the columns, and account for every row."""
