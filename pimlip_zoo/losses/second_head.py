"""Training on two levels of theory at once: weak labels through a correction that is thrown away afterwards."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from pimlip_zoo.graph import Batch, Predictions, graph_to
from pimlip_zoo.losses.base import LossTerm, LossValue, PotentialLike
from pimlip_zoo.losses.draw import Pool, step_generator
from pimlip_zoo.losses.supervised import atom_counts

__all__ = ["SecondHead"]


class SecondHead(LossTerm):
    """Weak labels, asked of the potential plus a correction of its own.

    The potential stands for the reference level; ``potential + correction`` for the cheap one, so that what
    the levels share is learnt from the many cheap labels and what they do not share ends up in the correction. Every
    architecture can do this, and what is exported is the potential alone.

    Args:
        pool: structures with cheap energies and forces.
        correction: a potential of the same species.
        energy_weight: of the squared energy error per atom.
        force_weight: of the squared force error by component.
        weight: of the term.
        seed: of the batches.
    """

    def __init__(
        self,
        pool: Pool,
        correction: nn.Module,
        *,
        energy_weight: float = 1.0,
        force_weight: float = 1.0,
        weight: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__("second_head", weight)
        self.pool, self.correction = pool, correction
        self.energy_weight, self.force_weight, self.seed = energy_weight, force_weight, seed
        self.steps = 0

    def get_extra_state(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """See :meth:`get_extra_state`."""
        self.steps = state["steps"]

    def forward(self, potential: PotentialLike, batch: Batch, predictions: Predictions) -> LossValue:  # noqa: ARG002
        """See :class:`LossTerm`; the batch of reference labels is not looked at."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        drawn = self.pool.draw(step_generator(self.seed, rank, self.steps if self.training else -1))
        if self.training:
            self.steps += 1
        device = predictions.energy.device
        graph = graph_to(drawn.graph, device)
        own = potential(graph, forces=True, virial=False)
        more = cast("PotentialLike", self.correction)(graph, forces=True, virial=False)
        count = atom_counts(Batch(graph, drawn.labels)).to(device)
        energy = (own.energy + more.energy - drawn.labels.energy.to(device)) / count
        forces = own.forces + more.forces - drawn.labels.forces.to(device)
        total = self.energy_weight * energy.square().mean() + self.force_weight * forces.square().mean()
        return LossValue(total, torch.ones_like(total))
