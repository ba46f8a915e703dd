"""When a checkpoint is due, with a clock that the test moves."""

from __future__ import annotations

import random

import pytest

from preftune.train.saving import BYTES_PER_S, INTERVAL_S, SHARE, Saving


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize(("every", "steps"), [(3, [3, 6, 9]), (1, list(range(1, 11))), (None, [])])
def test_steps_decide_if_they_are_set(every: int | None, steps: list[int]) -> None:
    saving = Saving(every, 10**15, 0)
    assert [step for step in range(1, 11) if saving.due(step)] == steps


@pytest.mark.parametrize("step_s", [0.01, 1.0, 45.0, 400.0])
@pytest.mark.parametrize("cost", [0.01, 1.0, 2.9, 20.0, 300.0])
def test_saving_takes_at_most_its_share_and_little_is_lost(step_s: float, cost: float) -> None:
    """The share holds at every moment, also if the first estimate of the cost was too low. No run without an estimate
    can know the cost of its first checkpoint, so only this one may exceed the share."""
    clock = Clock()
    saving = Saving("auto", int(cost * BYTES_PER_S), 0, clock)
    spent, last, longest, began = 0.0, clock.time, 0.0, clock.time
    for step in range(1, min(100_000, int(20_000 / step_s))):
        clock.time += step_s
        if saving.due(step):
            longest = max(longest, clock.time - last)
            clock.time += cost
            spent, last = spent + cost, clock.time
            saving.saved(cost)
            assert spent <= SHARE * (clock.time - began) * (1 + SHARE)
    if cost <= SHARE * INTERVAL_S:
        assert longest <= INTERVAL_S + step_s + 1e-6
    assert spent > 0 or cost > SHARE * (clock.time - began)


def test_a_wrong_estimate_is_corrected_by_the_first_checkpoint() -> None:
    clock, costs = Clock(), random.Random(0)
    saving = Saving("auto", 1000, 0, clock)
    spent, began = 0.0, clock.time
    for step in range(20_000):
        clock.time += 1.0
        if saving.due(step):
            cost = costs.uniform(10, 12)
            clock.time += cost
            spent += cost
            saving.saved(cost)
    assert 0.9 * SHARE < spent / (clock.time - began) < 1.1 * SHARE


def test_a_failed_attempt_is_repeated_after_the_interval() -> None:
    clock = Clock()
    saving = Saving("auto", 1000, 0, clock)
    clock.time += INTERVAL_S
    assert saving.due(1)
    saving.saved(0.1)
    assert not saving.due(2)
    clock.time += INTERVAL_S
    assert saving.due(3)


def test_none_is_due_by_time_while_the_last_one_is_being_written() -> None:
    clock = Clock()
    saving = Saving("auto", 1000, 0, clock)
    clock.time += INTERVAL_S
    assert not saving.due(1, is_busy=True)
    assert saving.due(1)
    assert Saving(1, 1000, 0, clock).due(1, is_busy=True)
