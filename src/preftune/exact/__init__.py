"""The optimal policy in closed form, for problems that are small enough to enumerate all responses."""
