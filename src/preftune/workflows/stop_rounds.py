"""When the rounds of preftune iterate stop."""

from __future__ import annotations

from preftune.config.sampling import IterateConfig


def gain_of(before: dict[str, float], after: dict[str, float]) -> float:
    """Return by how much the mean reward rose; 0 without a reward."""
    return after.get("objective/score", 0.0) - before.get("objective/score", 0.0)


def stop_reason(config: IterateConfig, before: dict[str, float], after: dict[str, float]) -> str:
    """Return why the rounds stop after this evaluation, or "" if they continue."""
    gain = gain_of(before, after)
    if config.stop.gain is not None and gain < config.stop.gain:
        text = f"the reward rose by {gain:.3f}, less than stop.gain={config.stop.gain:g}"
        return exceeded_limit(config, after) or text
    return exceeded_limit(config, after)


def exceeded_limit(config: IterateConfig, after: dict[str, float]) -> str:
    """Return which of stop.kl and stop.diversity the policy exceeds, or "". Without word pairs, diversity is 1."""
    stop, kl, diversity = config.stop, after["objective/kl"], after.get("diversity", 1.0)
    if stop.kl is not None and kl > stop.kl:
        return f"the KL from the first model is {kl:.2f} nats, more than stop.kl={stop.kl:g}"
    if stop.diversity is not None and diversity < stop.diversity:
        return f"only {diversity:.0%} of the word pairs are distinct, less than stop.diversity={stop.diversity:g}"
    return ""
