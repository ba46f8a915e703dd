"""From token slots to log-probs: loading, the head, the policy's and the reference's log-probs, sampling."""
