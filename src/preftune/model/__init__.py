"""Models: load and save, log-probs of the policy and the reference, rewards, sampling."""
