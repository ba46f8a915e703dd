"""Rewards of responses: reward models, implicit rewards, judges behind a server, and functions."""
