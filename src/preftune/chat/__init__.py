"""Chat templates: messages to token ids, with checks that no text of a response is lost."""
