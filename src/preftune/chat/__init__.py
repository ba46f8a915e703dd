"""Convert text and chat messages to token ids, and check that the chat template drops no text of a response."""
