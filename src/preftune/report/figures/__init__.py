"""The figures of the reports: what each shows, in words and as data. assets/figures draws them."""
