"""The training methods: SFT, preference losses, reward models and PPO. Each reads from top to bottom."""
