"""How the learning rate changes over a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

__all__ = ["ScheduleName", "learning_rate_factor"]

ScheduleName = Literal["constant", "cosine", "exponential", "linear"]


def learning_rate_factor(
    name: ScheduleName, *, warmup_steps: int, total_steps: int, final: float
) -> Callable[[int], float]:
    """Factor of the learning rate by step: a linear warm-up, then the named decay to ``final`` at the last step.

    Args:
        name: constant, cosine, exponential or linear.
        warmup_steps: steps until the factor is 1.
        total_steps: length of the run.
        final: factor at the end.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        if name == "cosine":
            return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
        if name == "exponential":
            return max(final, 1e-12) ** progress
        if name == "linear":
            return 1.0 + (final - 1.0) * progress
        return 1.0

    return factor
