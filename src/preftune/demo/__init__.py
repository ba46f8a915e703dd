"""The demo: SFT, sampling, DPO and evaluation on synthetic reviews whose true reward is known. Runs offline."""
