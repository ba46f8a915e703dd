"""How good a policy is: reward against KL, with what best-of-n and the optimum would reach."""
