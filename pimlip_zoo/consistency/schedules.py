"""How the weight of a loss changes while training goes on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from pimlip_zoo.errors import InputError

__all__ = ["Constant", "Decay", "Schedule", "TiedToError", "WarmUp"]


class Schedule:
    """A factor of a weight, between 0 and 1, from the step and how well the labels are fitted: always 1."""

    needs_error: ClassVar[bool] = False
    """Whether the factor depends on how well the labels are fitted."""

    def factor(self, step: int, error: float | None = None) -> float:  # noqa: ARG002
        """The factor at a step.

        Args:
            step: optimiser steps done.
            error: running mean of the supervised loss, in its own unit; None before the first step.
        """
        return 1.0

    def state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :meth:`state`."""


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
            raise InputError(f"a warm-up of {steps} steps from step {start}", mend="give numbers >= 0")
        self.steps, self.start = steps, start

    def factor(self, step: int, error: float | None = None) -> float:  # noqa: ARG002
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
                f"a decay over {steps} steps from step {start}", mend="give steps >= 1, start >= 0"
            )
        if not 0.0 <= last <= 1.0:
            raise InputError(f"a decay to {last}", mend="give a factor between 0 and 1")
        self.steps, self.start, self.last = steps, start, last

    def factor(self, step: int, error: float | None = None) -> float:  # noqa: ARG002
        """See :class:`Schedule`."""
        progress = min(1.0, max(0.0, (step - self.start) / self.steps))
        return self.last + (1.0 - self.last) * 0.5 * (1.0 + math.cos(math.pi * progress))


class TiedToError(Schedule):
    """Falls with the supervised error, so that the prior does not bias a model that fits its labels.

    ``min(1, (error / reference)^power)``; the reference is the given one, or the first error that was seen.

    Args:
        power: of the ratio.
        reference: supervised loss below which the factor falls.
    """

    needs_error = True

    def __init__(self, power: float = 1.0, reference: float | None = None) -> None:
        if not power > 0:
            raise InputError(f"the power is {power}", mend="give a number > 0")
        if reference is not None and not reference > 0:
            raise InputError(f"the reference error is {reference}", mend="give a number > 0")
        self.power, self.reference = power, reference

    def factor(self, step: int, error: float | None = None) -> float:  # noqa: ARG002
        """See :class:`Schedule`."""
        if error is None or not math.isfinite(error):
            return 1.0
        if self.reference is None:
            self.reference = max(error, 1e-30)
        ratio: float = (max(error, 0.0) / self.reference) ** self.power
        return min(1.0, ratio)

    def state(self) -> dict[str, Any]:
        """See :class:`Schedule`."""
        return {"reference": self.reference}

    def restore(self, state: Mapping[str, Any]) -> None:
        """See :class:`Schedule`."""
        self.reference = state["reference"]
