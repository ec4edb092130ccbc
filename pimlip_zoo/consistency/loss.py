"""A residual as a term of the total loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from pimlip_zoo.consistency.residuals import Residual
from pimlip_zoo.consistency.sampling import ConsistencySampling
from pimlip_zoo.consistency.schedules import Constant, Schedule
from pimlip_zoo.consistency.surface import Detach, Surface
from pimlip_zoo.graph import Batch
from pimlip_zoo.losses.base import Evaluated, LossTerm, LossValue, Requests, Step

Unit = Literal["lambda", "per_atom", "total"]


class ConsistencyLoss(LossTerm):
    """The mean square of a residual, over the structures that have the labels that it needs.

    Args:
        residual: what is to vanish.
        sampling: what is looked at; the terms of a run share it, and so the copies of structures.
        weight: factor in the total loss; in units of lambda relative to ``force_weight``.
        unit: what the weight multiplies. lambda: ``(R / (N ε))²`` with the amplitude ε of the displacements or strains;
            per_atom: ``(R / N)²``; total: ``R²``. A residual that is a penalty takes the weight as it is.
        detach: the side that gets no gradient.
        schedule: of the weight.
        force_weight: of the supervised force loss.
        options: of the residual.
    """

    def __init__(
        self,
        residual: Residual,
        sampling: ConsistencySampling,
        *,
        weight: float = 1.0,
        unit: Unit = "lambda",
        detach: Detach = "none",
        schedule: Schedule | None = None,
        force_weight: float = 1.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        relative = unit == "lambda" and not residual.penalty
        super().__init__(residual.name, weight * (force_weight if relative else 1.0))
        self.residual, self.unit, self.detach = residual, unit, detach
        self.schedule = schedule or Constant()
        self.sampling = sampling
        self._function = residual.bound(options)

    def factor(self, step: Step) -> float:
        """See :class:`LossTerm`."""
        return self.schedule.factor(step.number)

    def requests(self, batch: Batch, step: Step) -> Requests:  # noqa: ARG002
        """See :class:`LossTerm`; before a late start and after a decay to nothing no copy is looked at."""
        return Requests(
            sampling=self.sampling,
            reads=self.residual.reads if self.factor(step) > 0 else None,
        )

    def forward(self, evaluated: Evaluated) -> LossValue:
        """See :class:`LossTerm`."""
        if evaluated.surface is None or self.factor(evaluated.step) <= 0:
            zero = evaluated.predictions.energy.new_zeros(())
            return LossValue(zero, zero)
        surface = evaluated.surface.detached(self.detach)
        value = self._function(surface)
        missing = value.detach().isnan()
        # Filled before the square, whose own gradient would make NaN of a missing value.
        value = value.masked_fill(missing, 0.0)
        if not self.residual.penalty:
            value = (value / self._divisor(surface)).square()
        weight = surface.weight.masked_fill(missing, 0.0)
        return LossValue(value @ weight, weight.sum())

    def _divisor(self, surface: Surface) -> Tensor:
        """(M,) what a residual is divided by before it is squared."""
        if self.unit == "total":
            return torch.ones_like(surface.atoms)
        if self.unit == "per_atom":
            return surface.atoms
        return surface.atoms * self.sampling.amplitude(self.residual.reads)
