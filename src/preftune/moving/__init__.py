"""Configs of other programs: reads those of TRL, LLaMA-Factory, axolotl, OpenRLHF and ms-swift, and writes ours."""
