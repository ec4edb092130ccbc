"""A supervised loss: the directions of forces, whatever their size."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat

from pimlip_zoo.graph import Batch
from pimlip_zoo.losses import Evaluated, LossOptions, LossTerm, LossValue, Requests, Step, loss


class DirectionOptions(LossOptions):
    """Options of the loss, beside its weight."""

    small: PositiveFloat = 0.1
    """eV/Å; forces below it count less."""


@loss("force_direction", label="forces", options=DirectionOptions)
class ForceDirection(LossTerm):
    """One minus the cosine between predicted and labelled force, averaged over atoms."""

    def __init__(self, weight: float = 1.0, small: float = 0.1) -> None:
        super().__init__("force_direction", weight)
        self.small = small

    def requests(self, batch: Batch, step: Step) -> Requests:  # noqa: ARG002
        """Forces of the labelled structures."""
        return Requests(forces=True)

    def forward(self, evaluated: Evaluated) -> LossValue:
        """A sum over atoms with a label, and their (weighted) number: means stay exact over batches and ranks."""
        labels, graph = evaluated.batch.labels, evaluated.batch.graph
        missing = labels.forces.isnan().any(dim=1)
        label = labels.forces.masked_fill(missing.unsqueeze(1), 0.0)
        forces, size = evaluated.predictions.forces, label.norm(dim=1)
        cosine = (forces * label).sum(dim=1) / ((forces.norm(dim=1) + 1e-6) * (size + 1e-6))
        weight = labels.weight[graph.batch].masked_fill(missing, 0.0) * torch.tanh(size / self.small)
        return LossValue((weight * (1.0 - cosine)).sum(), weight.sum())
