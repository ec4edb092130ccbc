"""How the learning rate changes over a run, and how far a run is.

A run ends at its last step or when its time is over, whichever comes first. Both count as its end for the schedule:
the rate has decayed to its final value by then. The best rate is higher the shorter a run is, so that a run that has
time for a part of its steps raises it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

ScheduleName = Literal["constant", "cosine", "exponential", "linear", "plateau"]

_DECAYING: tuple[ScheduleName, ...] = ("cosine", "exponential", "linear")
READ_BY: dict[str, tuple[ScheduleName, ...]] = {
    "final": _DECAYING,
    "plateau_factor": ("plateau",),
    "plateau_patience": ("plateau",),
    "plateau_threshold": ("plateau",),
}
"""Options that only some schedules look at, and which; all others every schedule does."""


class RunClock:
    """How far a run is: the larger of the share of its steps and the share of its time.

    Args:
        total_steps: optimiser steps of the run.
        start: steps before which nothing decays (the warm-up).
    """

    def __init__(self, total_steps: int, start: int = 0) -> None:
        self.total_steps = total_steps
        self.start = start
        self.time_share = 0.0
        """Of the time budget, how much is used; set by whoever watches the time, 0 without a budget."""
        self.budget: float | None = None
        """Seconds that the run may take."""
        self.plateau = 1.0
        """Factor of the learning rate that validations without improvement have led to."""
        self.raised = 1.0
        """Factor of the learning rate of a run that has time for a part of its steps."""
        self.raised_at = 0
        """The step at which that was known."""

    def progress(self, step: int) -> float:
        """From 0 (the end of the warm-up) to 1 (the end of the run)."""
        steps = (step - self.start) / max(self.total_steps - self.start, 1)
        return min(max(steps, self.time_share, 0.0), 1.0)

    def has_reached(self, share: float, step: int) -> bool:
        """Whether that share of the run is done."""
        return self.progress(step) >= share


def learning_rate_factor(
    name: ScheduleName, *, warmup_steps: int, clock: RunClock, final: float
) -> Callable[[int], float]:
    """Factor of the learning rate by step: a linear warm-up, then the named decay to ``final`` at the end of the run.

    Where the clock says that the rate is to be raised, it rises for as many steps again, while it decays.

    Args:
        name: constant, cosine, exponential or linear; plateau is constant here, validations lower it.
        warmup_steps: steps until the factor is 1.
        clock: how far the run is.
        final: factor at the end.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        risen = min(max(step - clock.raised_at, 0) / (warmup_steps + 1), 1.0)  # as slowly as in the warm-up
        return (1.0 + (clock.raised - 1.0) * risen) * decayed(clock.progress(step))

    def decayed(progress: float) -> float:
        if name == "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if name == "exponential":
            return max(final, 1e-12) ** progress
        if name == "linear":
            return 1.0 + (final - 1.0) * progress
        return clock.plateau if name == "plateau" else 1.0

    return factor
