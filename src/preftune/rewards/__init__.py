"""Rewards of responses (reward models, implicit rewards, chat models, functions), and judges that compare two."""
