"""How the weight of a loss changes while training goes on."""

from __future__ import annotations

import math

from pimlip_zoo.errors import InputError


class Schedule:
    """A factor of a weight, between 0 and 1, from the step: always 1."""

    def factor(self, step: int) -> float:  # noqa: ARG002
        """The factor at a step.

        Args:
            step: optimiser steps done.
        """
        return 1.0


class Constant(Schedule):
    """Always one."""


class WarmUp(Schedule):
    """Zero up to a step, then a linear rise to one.

    Args:
        steps: length of the rise.
        start: step at which it begins.
    """

    def __init__(self, steps: int, start: int = 0) -> None:
        if steps < 0 or start < 0:
            raise InputError(f"a warm-up of {steps} steps from step {start}", hint="give numbers >= 0")
        self.steps, self.start = steps, start

    def factor(self, step: int) -> float:
        """See :class:`Schedule`."""
        if step < self.start:
            return 0.0
        return 1.0 if self.steps == 0 else min(1.0, (step - self.start) / self.steps)


class Decay(Schedule):
    """One, then a cosine fall to a last value.

    Args:
        steps: length of the fall.
        start: step at which it begins.
        last: factor that remains.
    """

    def __init__(self, steps: int, start: int = 0, last: float = 0.0) -> None:
        if steps < 1 or start < 0:
            raise InputError(
                f"a decay over {steps} steps from step {start}", hint="give steps >= 1, start >= 0"
            )
        if not 0.0 <= last <= 1.0:
            raise InputError(f"a decay to {last}", hint="give a factor between 0 and 1")
        self.steps, self.start, self.last = steps, start, last

    def factor(self, step: int) -> float:
        """See :class:`Schedule`."""
        progress = min(1.0, max(0.0, (step - self.start) / self.steps))
        return self.last + (1.0 - self.last) * 0.5 * (1.0 + math.cos(math.pi * progress))
