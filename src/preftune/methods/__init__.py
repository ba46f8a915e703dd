"""The training methods: SFT, preference losses, reward models and PPO, each with a function `run`."""
