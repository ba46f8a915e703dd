"""From files to token groups and batches: read -> formats -> render -> groups -> order -> layout."""
